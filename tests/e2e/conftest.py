"""The command line, called in this process: a process of its own takes seconds to import torch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from fishr_exp.cli import run as cli
from fishr_exp.configuration import composing
from fishr_exp.training import loop

ROOT = Path(__file__).resolve().parents[2]
# What every run begins with.
ANNOUNCED = re.compile(r"trainer=\S+.* on dataset=|folder /|\d+ steps? on ")
COMPOSED = composing._Kept()  # the files of `conf/` are read once for the commands of all tests
TINY = ("model.hidden=8", "epochs=2", "steps_per_epoch=2", "tracker=none")


@dataclass(frozen=True)
class Outcome:
    """What a call of the command left behind."""

    status: int
    out: str
    err: str
    folder: Path  # the newest run folder
    announced: str = ""  # the lines of `err` that say what a run is; they are not in it

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "records.jsonl").open()]

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The checkpoint `best`, or `last`, the newest state."""
        path = newest_state(self.folder) if name == "last" else self.folder / "checkpoints/best.pt"
        return torch.load(path, weights_only=True)


def newest_state(folder: Path) -> Path:
    """The checkpoint of a run folder that a stopped run resumes from."""
    states = (folder / "checkpoints").glob("step-*.pt")
    return max(states, key=lambda path: int(path.stem.removeprefix("step-")))


Command = Callable[..., Outcome]


def stop_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come before the update of `step`."""
    real = loop.optimizer_step

    def step_or_stop(*arguments: Any) -> Any:
        if arguments[4] == step:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(loop, "optimizer_step", step_or_stop)


@pytest.fixture
def fishr_exp(tmp_path: Path) -> Command:
    """Call `fishr-exp` with overrides on top of `TINY`; runs go to `tmp_path/runs`."""
    return caller(tmp_path / "runs")


def caller(runs: Path) -> Command:
    """Return a function that calls `fishr-exp` as its console script does."""

    def call(*words: str, full_error: bool = False, tiny: tuple[str, ...] = TINY) -> Outcome:
        flags = [word for word in words if word.startswith("-")]
        overrides = [word for word in words if word not in flags]
        given = "".join(overrides)
        if "output_dir=" not in given and "hydra.run.dir=" not in given:
            overrides.append(f"output_dir={runs}")
        out, err = io.StringIO(), io.StringIO()
        with (
            _as_a_process([*flags, *tiny, *overrides], full_error),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = _call()
        made = sorted(runs.glob("*/config.json"), key=lambda path: path.stat().st_mtime_ns)
        folder = made[-1].parent if made else runs / "none"
        said = err.getvalue().splitlines(keepends=True)
        announced = [line for line in said if ANNOUNCED.match(line)]
        rest = "".join(line for line in said if line not in announced)
        return Outcome(status, out.getvalue(), rest, folder, "".join(announced))

    return call


def _call() -> int:
    try:
        cli.main()
    except SystemExit as stop:
        return 0 if stop.code is None else int(stop.code)
    except Exception:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_a_process(words: list[str], full_error: bool) -> Iterator[None]:
    """Set what a process is started with; put back what the command changes in this one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fishr-exp", *words])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(cli, "FULL_ERROR", full_error)
        if not any(word.startswith(("--config", "-c", "hydra.searchpath")) for word in words):
            patch.setattr(composing, "_Kept", lambda: COMPOSED)
        try:
            yield
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m fishr_exp` in a process of its own, on one thread."""
    import os

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, "-m", "fishr_exp", *words], env=environment, **options)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three domains of two classes, six images of 16x16 pixels each."""
    draw = np.random.default_rng(0)
    root = tmp_path / "images"
    for domain in ("photo", "sketch", "cartoon"):
        for label, name in enumerate(("cat", "dog")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = draw.integers(100 * label, 100 * label + 150, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
