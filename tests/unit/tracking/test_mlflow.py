"""The mirror of MLflow, on a SQLite file, without a run that trains."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fishr_exp.cli import sync as sync_cli
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mlflow import MlflowMirror

from .conftest import CONFIG, LABELS, RESULT, record

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests here: making one takes seconds."""
    return tmp_path_factory.mktemp("database") / "mlflow.db"


def runs_of(database: Path, experiment: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{database}")
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def mirrored(folder: RunFolder, database: Path, experiment: str) -> MlflowMirror:
    """Mirror a run that is done."""
    for step in (2, 4):
        folder.append(record(step))
    folder.write_environment({})
    folder.finish(RESULT)
    mirror = MlflowMirror(folder, f"sqlite:///{database}", experiment, "sweep")
    mirror.catch_up(CONFIG, LABELS)
    assert mirror.error == ""
    folder.close()
    return mirror


def test_a_busy_database_is_not_taken_for_a_lost_one(folder: RunFolder, database: Path) -> None:
    mirror = mirrored(folder, database, "busy")
    assert not mirror.lacks("FINISHED")
    with contextlib.closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert not mirror.lacks("FINISHED")


def test_the_use_of_the_system_is_sent_while_a_run_goes_on(
    folder: RunFolder, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    uri = f"sqlite:///{database}"
    folder.append(record(2))
    mirror = MlflowMirror(folder, uri, "system", "sweep", system_metrics=True)
    mirror.start(CONFIG, LABELS)
    deadline = time.monotonic() + 60
    while mirror._monitor is None or mirror._monitor._logging_step < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    watching = mirror._monitor._process
    mirror.finish("KILLED")
    (run,) = runs_of(database, "system")
    assert (mirror.error, run.info.status) == ("", "KILLED")
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert not watching.is_alive()
    # A run that has ended is not watched when it is sent.
    folder.finish(RESULT)
    again = MlflowMirror(folder, uri, "system", "sweep", system_metrics=True)
    again.catch_up(CONFIG, LABELS)
    assert again._monitor is None
    assert again._tracker["system_metrics"] is True
    assert "log_model" not in again._tracker


def test_a_folder_that_the_first_version_mirrored_stays_one_run(
    folder: RunFolder, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tracking.json has the settings of MLflow, and names no tracker."""
    mirror = mirrored(folder, database, "first")
    before = (
        f'{{"tracking_uri": "sqlite:///{database}", "experiment": "first", "sweep": "as before", '
        '"labels": {"dataset": "colored_digits", "model": "mlp", "trainer": "fishr"}, '
        f'"mirror": "{mirror.identity}", "run_id": "{mirror.run_id}", "ended": "%s"}}'
    )
    for ended, outcome in (("FINISHED", "complete already"), ("RUNNING", "sent")):
        (folder.path / "tracking.json").write_text(before % ended)
        assert sync_cli.main([str(folder.path)]) == 0
        assert capsys.readouterr().out == f"1 runs under {folder.path}: 1 {outcome}\n"
    (run,) = runs_of(database, "first")
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{database}")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "risk")] == [2, 4]
    assert run.data.metrics["test_accuracy/minus90"] == 0.3


IN_A_NOTEBOOK = """
import json, logging, os, sys

import mlflow

def settings():
    loggers = [logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict)]
    return dict(os.environ), {log.name: log.level for log in [logging.root, *loggers] if log.level}

mlflow.MlflowClient(sys.argv[2]).search_experiments()  # MLflow sets levels of its own
seen = [settings()]

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mlflow import MlflowMirror

connect = MlflowMirror.connect
MlflowMirror.connect = lambda self: (connect(self), seen.append(settings()))
mirror = MlflowMirror(RunFolder(sys.argv[1]), sys.argv[2], "notebook", "notebook")
mirror.start({}, {})
mirror.finish("FINISHED")
assert mirror.error == "", mirror.error
seen.append(settings())
print(json.dumps(seen))
"""


def test_a_program_that_uses_the_mirror_keeps_its_settings(
    folder: RunFolder, database: Path
) -> None:
    """Environment and log levels are the program's own; the commands alone change them."""
    folder.append(record(2))
    folder.close()
    # The commands called by other tests have changed the environment of this process.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "DO_NOT"))}
    called = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK, folder.path, f"sqlite:///{database}"],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    before, connected, after = json.loads(called.stdout.splitlines()[-1])
    assert before == connected == after
    assert "mlflow" in after[1]
    assert len(runs_of(database, "notebook")) == 1
