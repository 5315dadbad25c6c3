"""A tracker gets every number once and in order, and never at the cost of the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from fishr_exp.runs.identity import flatten
from fishr_exp.runs.records import Result
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import mirror as mirror_module
from fishr_exp.tracking.content import End, Point, numbers
from fishr_exp.tracking.mirror import Mirror, unreachable

from .conftest import CONFIG, LABELS, RESULT, record

STAGES = ("connect", "open_run", "send_settings", "last_step", "send_records", "send_end")


class Memory(Mirror):
    """A tracker whose server is this class, which can be told to fail or to block."""

    name: ClassVar[str] = "Memory"
    runs: ClassVar[dict[str, dict[str, Any]]] = {}  # by identity
    failures: ClassVar[dict[str, int]] = {}  # by stage, how often it is still to fail
    calls: ClassVar[list[str]] = []
    answers_lost = False  # it fails after what was asked for is done
    blocked: ClassVar[threading.Event | None] = None
    pause = 0.02

    def __init__(self, folder: RunFolder, address: str = "memory://here") -> None:
        super().__init__(folder, address, address=address)

    def _serve(self, stage: str, work: Any = None) -> Any:
        self.calls.append(stage)
        if self.blocked:
            self.blocked.wait()
        fails = self.failures.get(stage, 0) > 0
        if fails:
            self.failures[stage] -= 1
        answer = None
        if work and (not fails or self.answers_lost):
            answer = work()
        if fails:
            raise ConnectionError(f"{stage}\nand more lines")
        return answer

    @property
    def run(self) -> dict[str, Any]:
        return self.runs[self.identity]

    def connect(self) -> None:
        self._serve("connect")

    def open_run(self) -> str:
        empty: dict[str, Any] = {"labels": self.labels, "points": [], "status": "RUNNING"}
        self._serve("open_run", lambda: self.runs.setdefault(self.identity, empty))
        return f"run of {self.identity}"

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        self._serve("send_settings", lambda: self.run.update(settings=settings))

    def last_step(self) -> int:
        return self._serve(
            "last_step", lambda: max((p.step for p in self.run["points"]), default=-1)
        )

    def send_records(self, points: Sequence[Point]) -> None:
        assert points
        self._serve("send_records", lambda: self.run["points"].extend(points))

    def send_end(self, end: End) -> None:
        self._serve("send_end", lambda: self.run.update(status=end.status, end=end))


@pytest.fixture(autouse=True)
def _fresh_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, empty in (("runs", {}), ("failures", {}), ("calls", []), ("blocked", None)):
        monkeypatch.setattr(Memory, name, empty)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_complete(folder: RunFolder, status: str = "FINISHED") -> None:
    """The server has one run, with each record once, in order, and its end."""
    (run,) = Memory.runs.values()
    assert (
        run["points"] == [Point(r["step"], r["time"], numbers(r)) for r in folder.records()] != []
    )
    assert run["settings"] == {**LABELS, **flatten(CONFIG)}
    assert run["status"] == status


def test_records_and_results_are_flattened_to_these_names() -> None:
    found = numbers(record(2, diagnostics={"shift": 3}, seconds_waiting_per_step=0.0))
    assert str(found.pop("penalty")) == "nan"
    assert found == {
        "risk": 0.5, "epoch": 1.0, "learning_rate": 0.001, "seconds_per_step": 0.01,
        "seconds_waiting_per_step": 0.0, "train_accuracy": 0.02, "diagnostics/shift": 3.0,
        "accuracy/plus90/train": 0.5, "accuracy/plus90/validation": 0.25,
    }  # fmt: skip
    assert Result.from_json(RESULT).numbers() == {
        "test_accuracy/minus90": 0.3, "test_accuracy": 0.3, "selected/train_accuracy": 0.9,
        "selected/validation_accuracy": 0.8,
    }  # fmt: skip


def test_every_number_is_sent_once_and_in_order(folder: RunFolder) -> None:
    mirror = Memory(folder)
    mirror.start(CONFIG, LABELS)
    for step in range(2, 22, 2):
        folder.append(record(step, losses={"risk": 1 / step}))
        mirror.sync()
        if step == 10:
            until(lambda: len(next(iter(Memory.runs.values()), {"points": []})["points"]) == 5)
    folder.finish(RESULT)
    mirror.finish("FINISHED")
    assert mirror.error == ""
    assert_complete(folder)
    assert [Memory.calls.count(stage) for stage in STAGES if stage != "send_records"] == [1] * 5
    end = next(iter(Memory.runs.values()))["end"]
    assert end.result == Point(4, 1020.5, Result.from_json(RESULT).numbers())
    assert end.error is None
    assert [path.name for path in end.files] == ["config.json", "result.json"]

    # Done and complete: nobody is asked.
    Memory.calls.clear()
    again = Memory(folder)
    assert not again.lacks("FINISHED")
    again.catch_up(CONFIG, LABELS)
    assert Memory.calls == []
    assert Memory(folder, "memory://elsewhere").lacks("FINISHED")


@pytest.mark.parametrize("answers_lost", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_failures_of_the_server_are_survived(
    stage: str, answers_lost: bool, folder: RunFolder, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The end has no second try in a run; `catch_up` or `fishr-sync` makes it."""
    monkeypatch.setattr(Memory, "answers_lost", answers_lost)
    caplog.set_level(logging.INFO)
    once = stage == "send_end" or (stage == "send_records" and answers_lost)  # then all is there
    Memory.failures[stage] = 1 if once else 3
    mirror = Memory(folder)
    mirror.start(CONFIG, LABELS)
    for step in (2, 4):
        folder.append(record(step, losses={"risk": 1 / step}))
        mirror.sync()
    if stage != "send_end":
        until(lambda: mirror.sync() or not (Memory.failures[stage] or mirror.error))
    folder.append(record(6, losses={"risk": 0.1}))
    folder.finish(RESULT)
    mirror.finish("FINISHED")
    said = [r.getMessage() for r in caplog.records if r.name == mirror_module.__name__]
    assert said[0].startswith(f"Memory at memory://here failed (ConnectionError: {stage}); ")
    assert str(folder.path) in said[0]
    assert "\n" not in said[0]
    if stage == "send_end":
        assert mirror.error == "ConnectionError: send_end"
        assert Memory(folder).lacks("FINISHED")
        Memory(folder).catch_up(CONFIG, LABELS)
        assert len(said) == 1
    else:
        assert said[1:] == ["Memory at memory://here is back, and has all records"]
    assert_complete(folder)
    assert not Memory(folder).lacks("FINISHED")
    assert not unreachable


def test_a_failed_run_sends_its_error(folder: RunFolder) -> None:
    mirror = Memory(folder)
    mirror.start(CONFIG, LABELS)
    folder.append(record(2, losses={}))
    folder.fail("not finite", {})
    mirror.finish("FAILED")
    assert_complete(folder, "FAILED")
    end = next(iter(Memory.runs.values()))["end"]
    assert (end.error, end.result) == ("not finite", None)


def test_the_end_of_a_run_waits_no_longer_than_its_patience(folder: RunFolder) -> None:
    Memory.blocked = threading.Event()
    mirror = Memory(folder)
    mirror.patience = 0.2
    mirror.start(CONFIG, LABELS)
    folder.append(record(2, losses={}))
    started = time.monotonic()
    mirror.finish("FINISHED")
    assert 0.19 < time.monotonic() - started < 0.9
    assert mirror.error == "not done in 0.2 s"
    assert unreachable == {"memory://here"}
    # The next run in this process does not wait as long again.
    second = Memory(folder)
    second.start(CONFIG, LABELS)
    started = time.monotonic()
    second.finish("FINISHED")
    assert 0.9 < time.monotonic() - started < 2
    # A late answer changes nothing in the folder, which may be another process's.
    noted = (folder.path / "tracking.json").read_bytes()
    Memory.blocked.set()
    for late in (mirror, second):
        assert late._thread
        late._thread.join(20)
    assert (folder.path / "tracking.json").read_bytes() == noted
    Memory(folder).catch_up(CONFIG, LABELS)
    assert_complete(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_state_costs_a_second_search(content: str, folder: RunFolder) -> None:
    folder.append(record(2, losses={}))
    (folder.path / "tracking.json").write_text(content)
    mirror = Memory(folder)
    assert mirror.lacks("FINISHED")
    mirror.catch_up(CONFIG, LABELS)
    assert_complete(folder)
