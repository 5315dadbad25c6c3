"""`hydra/sweeper=optuna` with real runs: killed and taken up again, failing, refused."""

from __future__ import annotations

import builtins
import importlib.util
import json
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fishr_exp.runs.run_folder import RunFolder

from .conftest import Command, newest_state, process

SEARCH = ("-m", "hydra/sweeper=optuna", "trainer.gamma=tag(log, interval(1, 1e6))")
SMALL = ("dataset=colored_digits", "model.hidden=8", "tracker=none")


def trials(folder: Path) -> list[tuple[int, dict[str, Any], float | None, str]]:
    optuna = pytest.importorskip("optuna")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
    return [(t.number, t.params, t.value, t.state.name) for t in study.trials]


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*/result.json")]


def made(folder: Path) -> dict[str, int]:
    """The runs that are done, and when each was."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/done")}


@pytest.mark.slow
def test_a_search_killed_in_the_middle_is_the_whole_search(
    fishr_exp: Command, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    words = (*SEARCH, *SMALL, "hydra.sweeper.n_trials=6", "epochs=4", "steps_per_epoch=100",
             "+hydra.sweeper.sampler.n_startup_trials=3", "checkpoint_every=5")  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fishr_exp(*words, f"output_dir={whole}", tiny=()).status == 0

    search = process(*words, f"output_dir={killed}")
    try:
        while len(made(killed)) < 2 or not half_done(killed):
            assert search.poll() is None, search.communicate()
            time.sleep(0.005)
        search.send_signal(signal.SIGKILL)
    finally:
        search.kill()
        search.communicate()
    (stopped,) = half_done(killed)
    assert [state for *_, state in trials(killed)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    before = made(killed)
    step = int(newest_state(stopped).stem.removeprefix("step-"))
    assert 0 < step < 400

    again = fishr_exp(*words, f"output_dir={killed}", tiny=())
    assert again.status == 0
    assert f"continuing {stopped} after step {step}\n" in again.err
    assert trials(killed) == trials(whole)
    assert [state for *_, state in trials(killed)] == ["COMPLETE"] * 6
    assert made(killed).items() >= before.items()  # none was made twice
    assert made(killed).keys() == made(whole).keys()
    assert len(made(killed)) == 6

    values = [value for _, _, value, _ in trials(killed)]
    assert max(values) == max(result["validation_accuracy"] for result in results(killed))
    assert sorted(values) == sorted(result["validation_accuracy"] for result in results(killed))
    tests = {result["test_accuracy"]["minus90"] for result in results(killed)}
    assert not tests & numbers(killed / "study.db")
    assert set(values) <= numbers(killed / "study.db")

    done = made(killed)
    study = trials(killed)
    assert fishr_exp(*words, f"output_dir={killed}", tiny=()).status == 0
    (killed / "study.db").unlink()
    assert fishr_exp(*words, f"output_dir={killed}", tiny=()).status == 0
    assert trials(killed) == study
    assert made(killed) == done


def half_done(folder: Path) -> list[Path]:
    states = {path.parent.parent for path in folder.glob("*/checkpoints/step-*.pt")}
    return [path for path in states if RunFolder(path).state == "running"]


def numbers(database: Path) -> set[float]:
    """All numbers in a database, whatever table they are in; and no text speaks of a test."""
    with sqlite3.connect(database) as connection:
        assert "test" not in "".join(connection.iterdump()).lower()
        tables = connection.execute("select name from sqlite_master where type = 'table'")
        rows = [row for (name,) in tables for row in connection.execute(f"select * from {name}")]
    return {cell for row in rows for cell in row if isinstance(cell, float)}


def test_what_fails_is_told_and_named_and_tried_again_when_asked(
    fishr_exp: Command, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    words = (*SEARCH[:2], "trainer.gamma=interval(1e30, 1e35)", "hydra.sweeper.n_trials=2",
             "optimizer=sgd", "optimizer.lr=100", "epochs=1", "steps_per_epoch=3")  # fmt: skip
    failed = fishr_exp(*words)
    assert failed.status == 1
    assert "fishr-exp: 2 runs in" in failed.err
    assert [(value, state) for *_, value, state in trials(tmp_path / "runs")] == [
        (None, "FAIL")
    ] * 2
    over = fishr_exp(*words)
    assert over.status == 0
    assert [line.split()[0] for line in over.err.splitlines()] == ["study"]
    again = fishr_exp(*words, "retry_failed=true")
    assert again.status == 1
    found = trials(tmp_path / "runs")
    assert [params for _, params, _, _ in found[2:]] == [params for _, params, _, _ in found[:2]]
    assert len(results(tmp_path / "runs")) == 2


def test_a_test_domain_is_never_searched_by(fishr_exp: Command, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    refused = fishr_exp(*SEARCH, "observer.monitor=accuracy/minus90/validation")
    assert refused.status == 2
    assert "observer.monitor not name a test domain" in refused.err.splitlines()[-1]
    assert [value for _, _, value, _ in trials(tmp_path / "runs")] == [None]


def test_two_searches_in_one_folder(fishr_exp: Command, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".lock"):
        refused = fishr_exp(*SEARCH)
    assert refused.status == 2
    assert "another process is running in this folder" in refused.err
    assert not (tmp_path / "runs" / "study.db").exists()


@pytest.mark.parametrize("words", [SEARCH, ("-m", "experiment=search_gamma")])
def test_without_optuna_one_line_says_what_to_install(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    find, load = importlib.util.find_spec, builtins.__import__

    def hidden(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", hidden)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "optuna" else find(name, *rest),
    )
    refused = fishr_exp(*words)
    assert refused.status == 2
    assert refused.err == (
        "fishr-exp: hydra/sweeper=optuna: Optuna is not installed; pip install optuna\n"
    )
    assert not (tmp_path / "runs").exists()
