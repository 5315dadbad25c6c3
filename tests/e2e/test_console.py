"""What a run says: on the console and in its log; and where it refuses to write."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import fishr_exp as package
from fishr_exp.cli import data, diagnostics, plan, sync, table
from fishr_exp.configuration import console

from .conftest import Command, process


def test_a_run_says_at_once_what_it_is(fishr_exp: Command) -> None:
    outcome = fishr_exp("trainer.gamma=10", "seed=3")
    what, where, how = outcome.announced.splitlines()
    assert how == "4 steps on cpu"
    assert what == (
        "trainer=fishr gamma=10 on dataset=colored_digits, tested on minus90: "
        "model=mlp seed=3 device=auto precision=fp32"
    )
    assert where == f"folder {outcome.folder}"


def test_imports_are_announced_before_they_take_time(tmp_path: Path) -> None:
    run = process("trainer=erm", "model.hidden=8", "epochs=1", "tracker=none",
                  f"output_dir={tmp_path}")  # fmt: skip
    _, err = run.communicate()
    assert err.splitlines()[1].endswith("(importing PyTorch takes a few seconds)")


def test_numbers_stand_under_one_another(fishr_exp: Command) -> None:
    lines = [s for s in fishr_exp("epochs=12").err.splitlines() if s.startswith("epoch")]
    assert len(lines) == 12
    for column in ("step", "risk", "penalty", "objective", "train", "validation"):
        assert len({line.index(f" {column} ") for line in lines}) == 1


def test_the_log_has_times_and_levels(fishr_exp: Command) -> None:
    outcome = fishr_exp("trainer.anneal_steps=50")
    assert "warning: trainer.anneal_steps=50" in outcome.err
    log = (outcome.folder / "fishr-exp.log").read_text().splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) ", line) for line in log
    )
    assert any(" WARNING trainer.anneal_steps=50" in line for line in log)


@pytest.mark.parametrize("logging", ["disabled", "none", "default"])
def test_hydras_other_logs_work(fishr_exp: Command, logging: str) -> None:
    assert fishr_exp("trainer=erm", f"hydra/job_logging={logging}").status == 0


def test_lines_of_runs_that_go_on_side_by_side_have_their_names(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    run = process("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer=erm",
                  "seed=0,1", "model.hidden=8", "epochs=1", "tracker=none",
                  f"output_dir={tmp_path}")  # fmt: skip
    _, err = run.communicate()
    names = [path.name for path in tmp_path.glob("erm-*")]
    lines = [line for line in err.splitlines() if "epoch 1/1" in line]
    assert sorted(line.partition(":")[0] for line in lines) == sorted(names), err


def test_a_formatter_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_name", "")
    record = console.logging.LogRecord("x", console.logging.WARNING, "", 0, "say %s", ("it",), None)
    assert console.ConsoleFormatter().format(record) == "warning: say it"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "\033[33mwarning: say it\033[0m" in console.ConsoleFormatter().format(record)


def test_test_accuracies_are_shown_when_asked(fishr_exp: Command) -> None:
    silent = fishr_exp("trainer=erm")
    assert "test minus90" not in "".join(silent.err.splitlines()[:2])
    shown = fishr_exp("trainer=erm", "show_test_accuracy=true", "resume=false")
    assert shown.folder == silent.folder
    (said,) = [line for line in shown.err.splitlines() if line.startswith("step 2  ")]
    by_part = shown.records()[0]["accuracy"]["minus90"]
    counts = shown.result()["counts"]["minus90"]
    whole = sum(by_part[p] * counts[p] for p in counts) / sum(counts.values())
    assert said == f"step 2  test minus90 {100 * whole:5.1f} %"


def test_words_stand_in_any_order(fishr_exp: Command, tmp_path: Path) -> None:
    run = process("trainer=erm", "-m", "seed=0,1", "--config-dir", str(tmp_path), "tracker=none",
                  "model.hidden=8", "epochs=1", f"output_dir={tmp_path / 'runs'}")  # fmt: skip
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert len(list((tmp_path / "runs").glob("*/done"))) == 2
    wrong = fishr_exp("--foo")
    assert (wrong.status, len(wrong.err.splitlines())) == (2, 1)


def test_the_version(fishr_exp: Command) -> None:
    outcome = fishr_exp("--version")
    assert (outcome.status, outcome.out) == (0, f"fishr-exp {package.__version__}\n")


@pytest.mark.parametrize("command", [data, diagnostics, plan, sync, table])
def test_every_command_says_its_version(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert stop.value.code == 0
    name, version = capsys.readouterr().out.split()
    assert name.startswith("fishr-")
    assert version == package.__version__


def test_fishr_data_takes_options_of_a_folder(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "conf" / "dataset"
    own.mkdir(parents=True)
    (own / "pets.yaml").write_text("# @package _global_\ndefaults: [image_folder]\n")
    assert data.main(["check", "pets", str(images), "--config-dir", str(tmp_path / "conf")]) == 0
    assert "sketch" in capsys.readouterr().out
    assert data.main(["check", "pets", str(images)]) == 2


# --- folders ---------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder that somebody works in, with files that are named like a run's."""
    folder = tmp_path / "theirs"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "my_best.pt").write_text("weights")
    (folder / "config.json").write_text('{"mine": 1}')
    (folder / "result.json").write_text("{}")
    return folder


@pytest.mark.parametrize("more", [(), ("resume=false",)])
def test_a_folder_of_somebody_elses_is_refused_and_left_alone(
    fishr_exp: Command, theirs: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(theirs)
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    outcome = fishr_exp("hydra.run.dir=.", *more)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("fishr-exp: hydra.run.dir=.: this folder holds files that are not a run")
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before


def test_files_beside_a_run_stay(fishr_exp: Command, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    assert fishr_exp(f"hydra.run.dir={folder}").status == 0  # a new folder
    for name in ("notes.txt", "checkpoints/my_best.pt"):
        (folder / name).write_text("mine")
    assert fishr_exp(f"hydra.run.dir={folder}", "resume=false").status == 0
    for name in ("notes.txt", "checkpoints/my_best.pt"):
        assert (folder / name).read_text() == "mine"
    other = fishr_exp(f"hydra.run.dir={folder}", "seed=1")
    assert "choose another hydra.run.dir, or resume=false" in other.err
    assert json.loads((folder / "config.json").read_text())["seed"] == 0


@pytest.mark.parametrize("value", ["", "null"])
def test_no_folder_at_all(fishr_exp: Command, value: str) -> None:
    outcome = fishr_exp(f"hydra.run.dir={value}")
    assert outcome.status == 2
    assert "hydra.run.dir" in outcome.err


@pytest.mark.parametrize("word", ["output_dir=~/runs", "hydra.run.dir=~/runs/one"])
def test_home(
    fishr_exp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert fishr_exp(word).status == 0
    assert len(list((tmp_path / "home" / "runs").glob("*/done"))) == 1
    again = fishr_exp(word)
    assert "done already" in again.err
    assert not list(tmp_path.glob("~*"))
