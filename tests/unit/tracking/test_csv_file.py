"""`tracker=csv`: a table that any program reads, with each evaluation once."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.content import numbers
from fishr_exp.tracking.csv_file import CsvMirror

from .conftest import CONFIG, LABELS, RESULT, record


def mirrored(folder: RunFolder, status: str, directory: Any = None) -> CsvMirror:
    mirror = CsvMirror(folder, directory and str(directory), "a sweep")
    mirror.start(CONFIG, LABELS)
    mirror.finish(status)
    assert mirror.error == ""
    return mirror


def rows(table: Path) -> list[dict[str, float]]:
    with table.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def assert_holds_all(folder: RunFolder, table: Path) -> None:
    """The table has each record once, in order, with all its numbers."""
    expected = [{"step": r["step"], "time": r["time"], **numbers(r)} for r in folder.records()]
    found = rows(table)
    assert [row["step"] for row in found] == [row["step"] for row in expected] != []
    for row, wanted in zip(found, expected, strict=True):
        assert {k: v for k, v in row.items() if not math.isnan(v)} == {
            k: v for k, v in wanted.items() if not math.isnan(v)
        }
        assert math.isnan(row["penalty"])


def test_a_stopped_run_goes_on_in_the_same_table(folder: RunFolder) -> None:
    table, about = folder.path / "metrics.csv", folder.path / "metrics.json"
    folder.append(record(2))
    mirrored(folder, "KILLED")
    assert json.loads(about.read_text())["status"] == "KILLED"
    folder.append(record(4, diagnostics={"shift": 3.0}))  # a column that the first row lacks
    folder.finish(RESULT)
    mirror = mirrored(folder, "FINISHED")
    assert_holds_all(folder, table)
    assert rows(table)[1]["diagnostics/shift"] == 3.0
    assert not mirror.lacks("FINISHED")
    told = json.loads(about.read_text())
    assert (told["status"], told["sweep"], told["error"]) == ("FINISHED", "a sweep", None)
    assert told["settings"]["trainer.gamma"] == 1.0
    assert told["settings"]["trainer"] == "fishr"
    assert told["result"]["step"] == 4
    assert told["result"]["test_accuracy/minus90"] == 0.3


def test_a_row_or_a_table_that_is_lost_is_written_again(folder: RunFolder) -> None:
    table = folder.path / "metrics.csv"
    for step in (2, 4):
        folder.append(record(step))
    folder.finish(RESULT)
    mirrored(folder, "FINISHED")
    for damaged in ("", "a,b\n1,2\n", "step,time\nx,y\n"):
        table.write_text(damaged)
        (folder.path / "tracking.json").unlink()
        mirrored(folder, "FINISHED")
        assert_holds_all(folder, table)
    table.unlink()
    assert CsvMirror(folder, None, "a sweep").lacks("FINISHED")
    mirrored(folder, "FINISHED")
    assert_holds_all(folder, table)


def test_a_run_from_scratch_begins_an_empty_table(folder: RunFolder) -> None:
    folder.append(record(2))
    mirrored(folder, "KILLED")
    folder.clear()
    assert not [path for path in folder.path.iterdir() if path.name.startswith("metrics")]
    folder.open(CONFIG)
    folder.append(record(4))
    mirrored(folder, "KILLED")
    assert_holds_all(folder, folder.path / "metrics.csv")


def test_runs_of_one_name_do_not_share_a_table(folder: RunFolder, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    folder.append(record(2))
    mirrored(folder, "KILLED", tables)
    with RunFolder(tmp_path / "elsewhere" / folder.path.name) as other:
        other.open(CONFIG)
        other.append(record(6))
        mirrored(other, "KILLED", tables)
        folder.append(record(4))
        mirrored(folder, "KILLED", tables)
        other.append(record(8))
        mirrored(other, "KILLED", tables)
        assert_holds_all(folder, tables / "fishr-seed0.csv")
        assert_holds_all(other, tables / "fishr-seed0-2.csv")
    assert sorted(path.name for path in tables.iterdir()) == [
        "fishr-seed0-2.csv", "fishr-seed0-2.json", "fishr-seed0.csv", "fishr-seed0.json",
    ]  # fmt: skip


def test_a_table_of_somebody_else_is_left_alone(folder: RunFolder, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "fishr-seed0.csv").write_text("mine\n1\n")
    (tables / "fishr-seed0-2.json").write_text('{"mine": 1}')
    folder.append(record(2))
    mirrored(folder, "KILLED", tables)
    assert_holds_all(folder, tables / "fishr-seed0-3.csv")
    assert (tables / "fishr-seed0.csv").read_text() == "mine\n1\n"
    assert (tables / "fishr-seed0-2.json").read_text() == '{"mine": 1}'


def test_a_failed_run_says_why(folder: RunFolder) -> None:
    folder.append(record(2))
    folder.fail("TrainingError: the risk is not finite")
    mirrored(folder, "FAILED")
    told = json.loads((folder.path / "metrics.json").read_text())
    assert (told["status"], told["result"]) == ("FAILED", None)
    assert "not finite" in told["error"]


def test_no_password_is_in_the_files(folder: RunFolder) -> None:
    folder.append(record(2))
    mirror = CsvMirror(folder, None, "a sweep")
    config = {**CONFIG, "dataset": {"token": "s3cr3t-word", "url": "https://me:s3cr3t-word@host"}}
    mirror.start(config, LABELS)
    mirror.finish("KILLED")
    told = (folder.path / "metrics.json").read_text()
    assert "s3cr3t" not in told
    assert "https://***@host" in told


def test_a_file_in_the_place_of_the_directory(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "tables").touch()
    with pytest.raises(ConfigError, match=r"tracker\.directory=.*is not a folder"):
        CsvMirror(folder, str(tmp_path / "tables"), "a sweep")
