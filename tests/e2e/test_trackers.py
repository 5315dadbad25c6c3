"""Several trackers at once, and tables instead of MLflow, on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Command, stop_before

TINY = ("model.hidden=8", "epochs=2", "steps_per_epoch=2")


def steps(table: Path) -> list[int]:
    with table.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_tracker_is_no_part_of_what_a_run_is(fishr_exp: Command, tmp_path: Path) -> None:
    """A done run is found with any tracker, which then gets all of it."""
    first = fishr_exp(tiny=(*TINY, "tracker=none"))
    tables = tmp_path / "tables"
    listed = ("tracker=[csv,mlflow]", f"tracker.csv.directory={tables}")
    uri = f"tracker.mlflow.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    for words in (("tracker=csv",), (*listed, uri), ("tracker=[csv]",)):
        again = fishr_exp(tiny=(*TINY, *words))
        assert (again.status, again.folder) == (0, first.folder)
        assert "done already" in again.err
        assert again.result() == first.result()
    for table in (first.folder / "metrics.csv", tables / f"{first.folder.name}.csv"):
        assert steps(table) == [2, 4]
    from mlflow import MlflowClient

    client = MlflowClient(uri.partition("=")[2])
    (run,) = client.search_runs([client.get_experiment_by_name("fishr-exp").experiment_id])
    assert run.info.status == "FINISHED"


def test_a_stopped_run_goes_on_in_its_table(
    fishr_exp: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = (*TINY, "tracker=csv", "epochs=3")
    with monkeypatch.context() as patch:
        stop_before(5, patch)
        stopped = fishr_exp(tiny=tiny)
    about = stopped.folder / "metrics.json"
    assert (stopped.status, json.loads(about.read_text())["status"]) == (130, "KILLED")
    gone_on = fishr_exp(tiny=tiny)
    assert steps(gone_on.folder / "metrics.csv") == [2, 4, 6]
    told: dict[str, Any] = json.loads(about.read_text())
    assert told["status"] == "FINISHED"
    assert told["result"]["test_accuracy/minus90"] == gone_on.result()["test_accuracy"]["minus90"]
    fresh = fishr_exp("resume=false", tiny=tiny)
    assert steps(fresh.folder / "metrics.csv") == [2, 4, 6]


def test_a_sweep_with_several_trackers(fishr_exp: Command) -> None:
    tiny = (*TINY, "tracker=[csv]", "epochs=1")
    words = ("-m", "seed=0,1", "sweep_name=mine")
    made = fishr_exp(*words, tiny=tiny)
    assert made.status == 0
    told = [
        json.loads(path.read_text())
        for path in sorted(made.folder.parent.glob("fishr-*/metrics.json"))
    ]
    assert [about["sweep"] for about in told] == ["mine", "mine"]
    assert sorted(about["tags"]["sweep_position"] for about in told) == ["1/2", "2/2"]
    again = fishr_exp(*words, tiny=tiny)
    assert "2 runs: 0 trained" in again.err
    assert "sent to the tracker" not in again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tracker=mlflow,csv", "or write tracker=[mlflow,csv] to have them all"),
        ("tracker=[mlflow,cvs]", "tracker=cvs: no such option"),
        ("tracker=[none,csv]", "none cannot stand beside others; leave it out"),
        (
            "tracker=[mlflow,csv] tracker.tracking_uri=x",
            "did you mean tracker.mlflow.tracking_uri?",
        ),
        ("tracker=[mlflow,csv] tracker.csv.dir=x", "known are directory, sweep"),
        (
            "tracker=[mlflow,csv] tracker.mlflow.tracking_uri=some.db",
            "pass tracker.mlflow.tracking_uri=sqlite:///some.db",
        ),
    ],
)
def test_mistakes_are_one_line(fishr_exp: Command, words: str, said: str) -> None:
    outcome = fishr_exp(tiny=(*TINY, *words.split()))
    (line,) = outcome.err.splitlines()
    assert outcome.status == 2
    assert said in line
    assert not list(outcome.folder.parent.glob("fishr-*"))
