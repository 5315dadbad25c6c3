"""`tracker=tensorboard`: event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import tensorboard as module
from fishr_exp.tracking.content import numbers
from fishr_exp.tracking.tensorboard import TensorBoardMirror

from .conftest import CONFIG, LABELS, RESULT, record

pytest.importorskip("tensorboard")


def mirrored(folder: RunFolder, status: str, directory: Path) -> TensorBoardMirror:
    mirror = TensorBoardMirror(folder, str(directory), "a sweep")
    mirror.start(CONFIG, LABELS)
    mirror.finish(status)
    assert mirror.error == ""
    return mirror


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.io_wrapper import IsSummaryEventsFile

    assert any(IsSummaryEventsFile(str(path)) for path in folder.iterdir())
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def hparams(events: Any, tag: str) -> Any:
    from tensorboard.plugins.hparams import metadata

    content = events.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    parse = getattr(metadata, f"parse_{tag}_plugin_data")
    return parse(content)


def assert_holds_all(folder: RunFolder, place: Path) -> None:
    """Each number of each record is there once, in order, at its step and time."""
    events, records = read(place), folder.records()
    for name in numbers(records[0]):
        found = events.Scalars(name)
        assert [event.step for event in found] == [r["step"] for r in records]
        assert [event.wall_time for event in found] == [r["time"] for r in records]
        wanted = [numbers(r)[name] for r in records]
        assert [event.value for event in found] == pytest.approx(wanted, nan_ok=True)
    assert math.isnan(events.Scalars("penalty")[0].value)


def test_a_stopped_run_goes_on_without_doubled_steps(folder: RunFolder, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

    place = tmp_path / "events" / "fishr-seed0"
    folder.append(record(2))
    mirrored(folder, "KILLED", tmp_path / "events")
    assert_holds_all(folder, place)
    assert json.loads((place / "run.json").read_text())["status"] == "KILLED"
    folder.append(record(4))
    folder.finish(RESULT)
    mirror = mirrored(folder, "FINISHED", tmp_path / "events")
    assert len([*place.glob("*tfevents*")]) == 2
    assert_holds_all(folder, place)
    assert not mirror.lacks("FINISHED")

    events = read(place)
    (test,) = events.Scalars("test_accuracy/minus90")
    assert (test.step, test.value) == (4, pytest.approx(0.3))
    given = hparams(events, "session_start_info").hparams
    assert given["trainer.gamma"].number_value == 1.0
    assert given["trainer"].string_value == "fishr"
    assert given["test_domains"].string_value == "minus90, plus80"
    assert given["sweep"].string_value == "a sweep"
    ended = hparams(events, "session_end_info")
    assert ended.status == STATUS_SUCCESS
    (table,) = events.Tensors("settings/text_summary")
    assert b"| trainer.gamma | 1.0 |" in table.tensor_proto.string_val[0]
    # All that is sent again after a lost note is found there.
    (folder.path / "tracking.json").write_text(
        json.dumps({**json.loads((folder.path / "tracking.json").read_text()), "ended": "RUNNING"})
    )
    mirrored(folder, "FINISHED", tmp_path / "events")
    assert_holds_all(folder, place)
    assert len(read(place).Scalars("test_accuracy/minus90")) == 1


def test_a_kill_in_the_middle_of_a_record_loses_none(folder: RunFolder, tmp_path: Path) -> None:
    for step in (2, 4):
        folder.append(record(step))
    mirrored(folder, "KILLED", tmp_path)
    (file,) = (tmp_path / "fishr-seed0").glob("*tfevents*")
    content = file.read_bytes()
    second = content.rindex(b"epoch")
    file.write_bytes(content[: second + 3])
    folder.append(record(6))
    mirrored(folder, "KILLED", tmp_path)
    assert_holds_all(folder, tmp_path / "fishr-seed0")


def test_a_failed_run_says_why(folder: RunFolder, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE

    folder.append(record(2))
    folder.fail("TrainingError: the risk is not finite")
    mirrored(folder, "FAILED", tmp_path)
    events = read(tmp_path / "fishr-seed0")
    (error,) = events.Tensors("error/text_summary")
    assert b"not finite" in error.tensor_proto.string_val[0]
    assert hparams(events, "session_end_info").status == STATUS_FAILURE


def test_runs_of_one_name_have_folders_of_their_own(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    mirrored(folder, "KILLED", tmp_path / "events")
    folder.clear()
    folder.open(CONFIG)
    folder.append(record(4))
    mirrored(folder, "KILLED", tmp_path / "events")
    assert_holds_all(folder, tmp_path / "events" / "fishr-seed0-2")


def test_no_password_is_in_the_files(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    mirror = TensorBoardMirror(folder, str(tmp_path / "events"), "a sweep")
    config = {**CONFIG, "dataset": {"token": "s3cr3t-word", "url": "https://me:s3cr3t-word@host"}}
    mirror.start(config, LABELS)
    mirror.finish("KILLED")
    (file,) = (tmp_path / "events" / "fishr-seed0").glob("*tfevents*")
    assert b"s3cr3t" not in file.read_bytes()
    assert b"https://***@host" in file.read_bytes()


def test_without_tensorboard_one_line_says_what_to_install(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        TensorBoardMirror(folder, str(tmp_path), "a sweep")
    assert str(refused.value) == "tracker=tensorboard: is not installed; pip install tensorboard"
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"tracker\.directory=.*is not a folder"):
        TensorBoardMirror(folder, str(tmp_path / "file"), "a sweep")
