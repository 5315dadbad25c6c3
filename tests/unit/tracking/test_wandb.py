"""`tracker=wandb`, offline: the files that `wandb sync` sends, read back. No network is used."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import wandb as module
from fishr_exp.tracking.content import numbers
from fishr_exp.tracking.mirror import unreachable
from fishr_exp.tracking.wandb import NoKeyError, WandbMirror

from .conftest import CONFIG, LABELS, RESULT, record

pytest.importorskip("wandb")
AWAY = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", AWAY)
    wandb.teardown()  # what it has read of the environment before


def mirror_of(folder: RunFolder, place: Path, mode: Any = "offline") -> WandbMirror:
    return WandbMirror(folder, "digits", None, mode, str(place), "a sweep")


def mirrored(folder: RunFolder, status: str, place: Path) -> WandbMirror:
    mirror = mirror_of(folder, place)
    mirror.start(CONFIG, LABELS)
    mirror.finish(status)
    assert mirror.error == ""
    return mirror


def records(file: Path) -> Iterator[Any]:
    """Read a file of Weights & Biases: a log of LevelDB's, whose records are protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        if (left := -at % 32768) < 7:
            at += left  # a block ends
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


class Sent:
    """What the files of one run hold, in the order in which they were made."""

    def __init__(self, place: Path) -> None:
        self.files = sorted(place.glob("wandb/offline-run-*/run-*.wandb"))
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.ends: list[int] = []
        self.runs: list[Any] = []
        for made in (made for file in self.files for made in records(file)):
            kind = made.WhichOneof("record_type")
            if kind == "history":
                self.rows.append(_pairs(made.history.item))
            elif kind == "config":
                self.config |= _pairs(made.config.update)
            elif kind == "summary":
                self.summary |= _pairs(made.summary.update)
            elif kind == "exit":
                self.ends.append(made.exit.exit_code)
            elif kind == "run":
                self.runs.append(made.run)
                self.config |= _pairs(made.run.config.update)


def _pairs(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_stopped_run_goes_on_as_the_same_run(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    mirrored(folder, "KILLED", tmp_path)
    folder.append(record(4))
    folder.finish(RESULT)
    mirror = mirrored(folder, "FINISHED", tmp_path)
    assert not mirror.lacks("FINISHED")
    sent = Sent(tmp_path)
    assert len(sent.files) == 2
    assert {(run.run_id, run.display_name) for run in sent.runs} == {
        (mirror.identity, "fishr-seed0")
    }
    run = sent.runs[0]
    assert (run.project, run.run_group) == ("digits", "a sweep")
    assert {*run.tags} == {"dataset:colored_digits", "model:mlp", "trainer:fishr"}
    assert [row["_step"] for row in sent.rows] == [2, 4]
    for row, written in zip(sent.rows, folder.records(), strict=True):
        assert row["_timestamp"] == written["time"]
        assert {name: row[name] for name in numbers(written)} == pytest.approx(
            numbers(written), nan_ok=True
        )
    assert sent.config["trainer.gamma"] == 1.0
    assert sent.config["trainer"] == "fishr"
    assert sent.config["sweep"] == "a sweep"
    assert sent.ends == [130, 0]
    assert sent.summary["status"] == "FINISHED"
    assert sent.summary["test_accuracy/minus90"] == 0.3
    files = sent.files[1].parent / "files"
    assert json.loads((files / "result.json").read_text())["status"] == "done"


def test_what_is_there_is_not_sent_again(folder: RunFolder, tmp_path: Path) -> None:
    for step in (2, 4):
        folder.append(record(step))
    mirrored(folder, "KILLED", tmp_path)
    (folder.path / "tracking.json").write_text(
        (folder.path / "tracking.json").read_text().replace("KILLED", "RUNNING")
    )
    folder.append(record(6))
    mirrored(folder, "KILLED", tmp_path)
    assert [row["_step"] for row in Sent(tmp_path).rows] == [2, 4, 6]


def test_tags_of_the_configuration_are_its_tags(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    mirror = mirror_of(folder, tmp_path)
    mirror.start({**CONFIG, "tags": ["first try", "digits"]}, LABELS)
    mirror.finish("KILLED")
    assert {"first try", "digits", "trainer:fishr"} <= {*Sent(tmp_path).runs[-1].tags}


def test_a_failed_run_says_why(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    folder.fail("TrainingError: the risk is not finite")
    mirrored(folder, "FAILED", tmp_path)
    sent = Sent(tmp_path)
    assert sent.ends == [1]
    assert "not finite" in sent.summary["error"]


def test_no_password_is_in_the_files(folder: RunFolder, tmp_path: Path) -> None:
    folder.append(record(2))
    mirror = mirror_of(folder, tmp_path / "files")
    config = {**CONFIG, "dataset": {"token": "s3cr3t-word", "url": "https://me:s3cr3t-word@host"}}
    mirror.start(config, LABELS)
    mirror.finish("KILLED")
    assert Sent(tmp_path / "files").config["dataset.url"] == "https://***@host"
    for path in (tmp_path / "files").rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes()


def test_without_a_key_nobody_is_asked_for_one(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    folder.append(record(2))
    mirror = mirror_of(folder, tmp_path, mode="online")
    mirror.start(CONFIG, LABELS)
    mirror.finish("KILLED")
    assert mirror.error.startswith(NoKeyError.__name__)
    assert "set WANDB_API_KEY or call `wandb login`, then fishr-sync" in caplog.text
    assert "tracker.mode=offline" in caplog.text


@pytest.mark.slow
def test_a_server_that_is_away_costs_one_warning(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    folder.append(record(2))
    mirror = mirror_of(folder, tmp_path, mode="online")
    mirror.start(CONFIG, LABELS)
    mirror.finish("KILLED")
    assert "connection refused" in mirror.error
    assert mirror.address in unreachable
    mirror._send()  # the next try is not in the way of itself
    assert "connection refused" in mirror.error
    assert caplog.text.count("Weights & Biases at http://127.0.0.1:9/digits failed") == 1
    assert "0123456789" * 4 not in caplog.text


def test_without_its_package_one_line_says_what_to_install(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        mirror_of(folder, tmp_path)
    assert str(refused.value) == "tracker=wandb: is not installed; pip install wandb"
