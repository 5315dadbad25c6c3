"""The commands of docs/training.md run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from .conftest import ROOT, TINY, Command

PAGE = (ROOT / "docs" / "training.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("fishr-exp ")
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_runs(line: str, fishr_exp: Command, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)[1:]
    small = ["scheduler.warmup_steps=2" for word in words if "warmup_steps" in word]
    presets = any(word.startswith("debug=") for word in words)
    tiny = TINY[:1] if presets else TINY
    done = fishr_exp(*words, *small, f"output_dir={tmp_path / 'runs'}", tiny=tiny)
    assert done.status == 0, done.err
    assert (done.folder / "done").exists()
