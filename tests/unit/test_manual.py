"""The manual: it builds without a warning, its commands are well formed, and its blocks run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fishr_exp.api import compose
from fishr_exp.cli import table
from fishr_exp.configuration.command_line import quoted
from fishr_exp.configuration.composing import without_hydra
from fishr_exp.configuration.starting import application, checked_arguments

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for path in [ROOT / "README.md", *DOCS.rglob("*.md")] if path.parent.name != "adr"
)
NEEDS_DATA = "<!-- needs data -->"  # before a block that cannot run without somebody's files
NOT_HERE = ("make", "source", "pip", "cd")  # what a person does, and a test has done
MODULES = {
    "fishr-exp": "run", "fishr-table": "table", "fishr-sweep-plan": "plan",
    "fishr-diagnostics": "diagnostics", "fishr-data": "data", "fishr-average": "average",
    "fishr-sync": "sync", "fishr-eval": "evaluate",
}  # fmt: skip


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    text: str
    needs_data: bool

    @property
    def commands(self) -> list[str]:
        """Its lines, with those that go on joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    @property
    def is_typed(self) -> bool:
        """Whether it is what a reader types, and needs nothing that a test has not."""
        known = all(line.split()[0] in (*MODULES, *NOT_HERE) for line in self.commands)
        return self.language in ("", "bash") and known and not self.needs_data


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text[: found.start()].rstrip().endswith(NEEDS_DATA))


def _is_written_out(words: list[str]) -> bool:
    """Whether a command is one that can be composed, and not a pattern of one."""
    return not any(re.search(r"[…$`|]|\.\.\.|[A-Z]{3,}=|^\S*OVERRIDE", word) for word in words)


def composed() -> list[tuple[Path, str]]:
    """The commands of all pages that a configuration is composed for."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.commands:
                if line.split()[0] in ("fishr-exp", "fishr-sweep-plan"):
                    found.append((page, line.partition("   #")[0]))
    return found


def name(case: tuple[Path, str]) -> str:
    return f"{case[0].stem}: {case[1]}"


@pytest.mark.parametrize("case", composed(), ids=name)
def test_a_command_is_one_that_can_be_given(case: tuple[Path, str]) -> None:
    """Its options and keys exist, and its values are of their types."""
    words = shlex.split(case[1].partition(" #")[0])[1:]
    flags = [word for word in words if word.startswith("-")]
    if not _is_written_out(words) or any(flag not in ("-m", "--multirun") for flag in flags):
        pytest.skip("a pattern, or a question to Hydra")
    words = quoted([word for word in words if word not in flags])  # as the command does
    if any("optuna" in word or "launcher" in word for word in words):
        pytest.skip("goes through a sweeper or a launcher of its own")
    parser = OverridesParser.create()
    one = []
    for parsed, word in zip(parser.parse_overrides(words), words, strict=True):
        values = parsed.value()
        if parsed.is_sweep_override() and hasattr(parsed, "sweep_string_iterator"):
            values = next(iter(parsed.sweep_string_iterator()), None)
            word = f"{parsed.get_key_element()}={values}"
        if not word.startswith("hydra.sweep"):
            one.append(word)
    config = compose(*one)
    own = without_hydra(config)
    for key in OmegaConf.missing_keys(own):
        OmegaConf.update(own, key, ["somewhere"] if key == "test_domains" else "somewhere")
    with application():
        assert checked_arguments(own, config.hydra)


def tables() -> list[tuple[Path, str, list[str]]]:
    """The tables of all pages, with the commands above them in their block that train."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            trained: list[str] = []
            for line in block.commands:
                command, given = line.split()[0], line.partition("   #")[0].strip()
                trained = [*trained, given] if command == "fishr-exp" else trained
                if command == "fishr-table":
                    found.append((page, given, trained))
    return found


def output_dir(line: str) -> str:
    """The folder that a command trains in."""
    words = shlex.split(line)
    own = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    experiments = [word for word in words if word.startswith("experiment=")]
    return own[0] if own else str(compose(*experiments).output_dir)


@pytest.mark.parametrize("case", tables(), ids=lambda case: f"{case[0].stem}: {case[1]}")
def test_a_table_is_one_that_can_be_made(
    case: tuple[Path, str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its flags and published sources exist, and its folder is that of the runs before it."""
    _, given, trained = case
    words = shlex.split(given)[1:]
    (folder,) = [word for word in words if re.match(r"outputs/|DIR$|RUNS?$", word)] or [None]
    here = [str(tmp_path) if word == folder else word for word in words]
    if "--watch" not in words:
        assert table.main(here) == (0 if folder is None else 2)
        assert re.search(r" contains no |^$| no run was trained", capsys.readouterr().err)
    if trained and str(folder).startswith("outputs/"):
        assert folder in [output_dir(line) for line in trained]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="MkDocs is not installed")
def test_the_manual_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "methods/fishr", "adr/0001-hydra-at-the-top-only", "contributing"):
        assert (tmp_path / "site" / f"{page}.html").exists(), page
    reference = (tmp_path / "site" / "reference" / "configuration.html").read_text()
    assert "anneal_steps" in reference
    assert "load_model" in (tmp_path / "site" / "reference" / "python.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial", "what_next", "training", "evaluate"])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    """One after another, in one folder, as a reader would give them."""
    typed = [block for block in blocks(DOCS / f"{page}.md") if block.is_typed]
    ran = 0
    for line in (line for block in typed for line in block.commands):
        if line.split()[0] in NOT_HERE:
            continue
        command, _, rest = line.partition(" #")[0].partition(" ")
        module = f"{sys.executable} -m fishr_exp.cli.{MODULES[command]}"
        done = subprocess.run(
            ["bash", "-ec", f"{module} {rest}"], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran


@pytest.mark.skipif(find_spec("nbclient") is None, reason="nbclient is not installed")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(DOCS / "example.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"model.hidden=64"', '"epochs=4", "model.hidden=8"')
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("text/html" in output.get("data", {}) for output in shown) == 3
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert len(list((tmp_path / "outputs" / "notebook").glob("*/done"))) == 6


def test_the_names_in_the_page_of_notebooks_exist() -> None:
    """Its blocks are those of the notebook, with the results of a run at hand."""
    import fishr_exp

    page = (DOCS / "notebooks.md").read_text()
    (names,) = re.findall(r"from fishr_exp import (.*)", page)
    assert sorted(names.split(", ")) == fishr_exp.__all__


def test_the_page_on_export_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from fishr_exp.api import load_model, run

    words = ("tracker=none", "total_steps=2", "steps_per_epoch=2", "model.hidden=4")
    found = run(compose(*words, f"output_dir={tmp_path}"))
    monkeypatch.chdir(tmp_path)
    for block in blocks(DOCS / "export.md"):
        text = block.text.replace('"outputs/runs/NAME"', repr(str(found.path)))
        exec(text.replace("INPUT_SHAPE", "(2, 8, 8)"), {})
    assert "# Fishr on colored_digits" in capsys.readouterr().out
    x = torch.rand(5, 2, 8, 8)
    exported = torch.export.load("network.pt2").module()
    torch.testing.assert_close(exported(x), load_model(found)(x))
