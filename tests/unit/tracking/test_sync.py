"""`fishr-sync` builds a run's tracker from tracking.json: any tracker, and nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.cli import sync as sync_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.content import numbers
from fishr_exp.tracking.mlflow import MlflowMirror
from fishr_exp.tracking.state import State

from .conftest import CONFIG, LABELS, RESULT, record

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tracking.md"


@pytest.fixture
def own_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tracker of docs/tracking.md, in a module outside the package."""
    found = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    (tmp_path / "lines_of_the_docs.py").write_text(found[1])
    monkeypatch.syspath_prepend(tmp_path)
    import lines_of_the_docs  # type: ignore[import-not-found]

    yield lines_of_the_docs.LinesMirror
    del sys.modules["lines_of_the_docs"]


def sync(*words: object) -> int:
    return sync_cli.main([str(word) for word in words])


def test_fishr_sync_sends_to_a_tracker_that_it_does_not_know(
    folder: RunFolder, own_mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for step in (2, 4):
        folder.append(record(step, losses={}))
    mirror = own_mirror(folder, "tables")
    mirror.start(CONFIG, LABELS)
    mirror.finish("KILLED")
    assert mirror.error == ""
    folder.append(record(6, losses={}))
    folder.finish(RESULT)
    folder.close()
    monkeypatch.chdir("/")
    runs = tmp_path / "runs"

    assert sync(runs) == 1
    assert capsys.readouterr().out == f"1 runs under {runs}: 1 not sent\n"
    assert "tracker._target_=lines_of_the_docs.LinesMirror: " in caplog.text
    assert "cannot be synced" in caplog.text
    assert "--allow-targets" in caplog.text
    for outcome in ("sent", "complete already"):
        assert sync(runs, "--allow-targets", "lines_of_the_docs") == 0
        assert capsys.readouterr().out == f"1 runs under {runs}: 1 {outcome}\n"

    lines = [json.loads(line) for line in (tmp_path / "tables/fishr-seed0.jsonl").open()]
    assert lines == [{"step": r["step"], **numbers(r)} for r in folder.records()]
    told = json.loads((tmp_path / "tables/fishr-seed0.json").read_text())
    assert told["status"] == "FINISHED"
    assert told["test_accuracy/minus90"] == 0.3
    assert told["settings"]["trainer"] == "fishr"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("fishr_exp.gradient_variance.CrossEntropy", "is not what an option of tracker builds"),
        ("os.system", "pass --allow-targets"),
        ("fishr_exp.tracking.gone.Mirror", "pass --allow-targets"),
    ],
)
def test_fishr_sync_builds_trackers_only(
    target: str, why: str, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.append(record(2))
    State({"_target_": target}, "here", "id", "run", "RUNNING").write(folder.path)
    folder.close()
    assert sync(folder.path) == 1
    assert f"tracker._target_={target}: " in caplog.text
    assert why in caplog.text


def test_a_state_that_the_first_version_wrote_is_read(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.append(record(2))
    folder.finish(RESULT)
    folder.close()
    (folder.path / "tracking.json").write_text(
        '{"tracking_uri": "http://127.0.0.1:9", "experiment": "both", "sweep": "2022-07-17",'
        ' "labels": {"dataset": "colored_digits", "model": "mlp", "trainer": "fishr"},'
        ' "mirror": "0a1b", "run_id": "7f7f", "ended": "FINISHED"}'
    )
    assert State.read(folder.path) == State(
        tracker={
            "_target_": "fishr_exp.tracking.mlflow_mirror.MlflowMirror",
            "tracking_uri": "http://127.0.0.1:9", "experiment": "both", "sweep": "2022-07-17",
        },
        address="http://127.0.0.1:9", identity="0a1b", run_id="7f7f", ended="FINISHED",
        labels=LABELS,
    )  # fmt: skip
    mirror = MlflowMirror(folder, "http://127.0.0.1:9", "both", "2022-07-17")
    assert not mirror.lacks("FINISHED")
    assert mirror.lacks("FAILED")
    assert sync(folder.path) == 0
    assert capsys.readouterr().out == f"1 runs under {folder.path}: 1 complete already\n"

    State.read(folder.path).write(folder.path)
    written = json.loads((folder.path / "tracking.json").read_text())
    assert written["tracker"]["_target_"] == "fishr_exp.tracking.mlflow_mirror.MlflowMirror"
    assert not mirror.lacks("FINISHED")


def test_a_mirror_of_mlflow_is_called_by_its_id(folder: RunFolder) -> None:
    mirror = MlflowMirror(folder, "sqlite:///x.db", "e", "s")
    assert mirror._tracker == {
        "_target_": "fishr_exp.tracking.mlflow_mirror.MlflowMirror",
        "tracking_uri": f"sqlite:///{Path('x.db').absolute()}", "experiment": "e", "sweep": "s",
    }  # fmt: skip


def test_no_folder_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync_cli.main([str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"fishr-sync: {tmp_path}/none is not a folder; pass a folder of runs\n"
