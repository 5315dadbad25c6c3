"""Kills at chosen and at random moments: the same command then gives the undisturbed run's bits.

A killed run is a fork of this process, which has imported everything, and sends itself the signal.
Where processes that others start are to end, the command is one of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training import run as training
from fishr_exp.training.arguments import Arguments
from tests.e2e.conftest import caller
from tests.e2e.test_kills import command, ended, forked, trees
from tests.e2e.test_runs import differences

SMALL = ("model.hidden=8", "epochs=2", "steps_per_epoch=3", "dataset=colored_digits",
         "trainer.ema_decay=0.9", "trainer.anneal_steps=2", "averaging=ema",
         "checkpoint_every=2")  # fmt: skip
RUN = (*SMALL, "tracker=none")
SWEEP = ("-m", "seed=0,1", *RUN)
KILL, TERM, INT, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP
Moment = tuple[str, int, str]  # a function, the number of its call, and before or after it


@dataclass(frozen=True)
class Whole:
    """What an undisturbed sweep leaves, and what its first run was called with."""

    runs: dict[str, Any]
    name: str
    arguments: Arguments

    @property
    def first(self) -> dict[str, Any]:
        return {self.name: self.runs[self.name]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Made in this process, so that forks of it have imported all that a run imports."""
    folder, called = tmp_path_factory.mktemp("whole"), []

    def noting(arguments: Arguments, folder: Path) -> Any:
        called.append((arguments, folder))
        return real(arguments, folder)

    real = training.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "run", noting)
        assert caller(folder)(*SWEEP, tiny=()).status == 0
    arguments, first = called[0]
    return Whole(trees(folder), first.name, arguments)


def check_whole(expected: dict[str, Any], runs: Path) -> None:
    """The runs are those of an undisturbed command, to the last bit, and nothing else is left."""
    assert differences(expected, trees(runs)) == []
    assert not list(runs.rglob("*.tmp"))
    assert all(RunFolder(path).state == "done" for path in runs.glob("fishr-*"))


# --- at each write -----------------------------------------------------------------------------

_WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")  # events of Python's audits
_MOST = 46  # of them in the folder of such a run
_FLUSHES = 13  # files that such a run writes and flushes


def killed_before_write(number: int, folder: Path) -> None:
    """Kill this process before the given one of its writes in a folder."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _WRITES or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        count += 1
        if count == number:
            os.kill(os.getpid(), KILL)

    sys.addaudithook(hook)


def cut_at_flush(number: int) -> None:
    """Leave half of a file, as a power failure may, and kill this process."""
    real, count = os.fsync, 0
    safe: dict[int, int] = {}  # what is on the disk of a file that grows

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        of = os.fstat(descriptor)
        grows = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        size, before = of.st_size, safe.get(of.st_ino, 0) if grows else 0
        if count == number:
            half = size - (size + 1) // 2 if size < 4096 else size // 2
            os.ftruncate(descriptor, max(half, min(before, size)))
            os.kill(os.getpid(), KILL)
        safe[of.st_ino] = size
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def check_run_killed(strike: Callable[[Path], None], whole: Whole, tmp_path: Path) -> None:
    """Kill a run, without Hydra, at a moment; the next start goes on to the same bits."""
    folder, log = tmp_path / "runs" / whole.name, tmp_path / "log"

    def call() -> None:
        strike(folder)
        training.run(whole.arguments, folder)

    assert ended(forked(call, log)) == -KILL, log.read_text()
    if folder.exists():
        assert RunFolder(folder).state in ("planned", "running", "done")
    again = forked(lambda: training.run(whole.arguments, folder) and None, log)
    assert ended(again) == 0, log.read_text()
    check_whole(whole.first, tmp_path / "runs")


def some_fast(numbers: range, every: int) -> Iterator[Any]:
    for number in numbers:
        yield pytest.param(number, marks=() if number % every == 0 else (pytest.mark.slow,))


@pytest.mark.parametrize("number", some_fast(range(1, _MOST + 1), 6))
def test_sigkill_before_each_write_of_a_run(number: int, whole: Whole, tmp_path: Path) -> None:
    check_run_killed(lambda folder: killed_before_write(number, folder), whole, tmp_path)


@pytest.mark.parametrize("number", some_fast(range(1, _FLUSHES + 1), 6))
def test_half_of_each_file_of_a_run(number: int, whole: Whole, tmp_path: Path) -> None:
    check_run_killed(lambda folder: cut_at_flush(number), whole, tmp_path)


# --- at chosen places --------------------------------------------------------------------------


def striking(words: tuple[str, ...], moment: Moment, number: signal.Signals) -> Callable[[], None]:
    """The command, in a fork, which sends itself a signal at a moment."""
    place, nth, when = moment
    module, _, name = place.partition(":")

    def call() -> None:
        signal.signal(HUP, signal.SIG_DFL)  # whoever started the tests may ignore it
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        real, calls = getattr(owner, last), 0

        def struck(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth and when == "before":
                os.kill(os.getpid(), number)
            result = real(*arguments, **keywords)
            if calls == nth and when == "after":
                os.kill(os.getpid(), number)
            return result

        setattr(owner, last, struck)
        command(*words)()

    return call


def disturbed(
    words: tuple[str, ...], moment: Moment, number: signal.Signals, tmp_path: Path
) -> Path:
    """Strike a command at a moment, and let the same command then go on; return its runs."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    words = (*words, f"output_dir={runs}")
    status = ended(forked(striking(words, moment, number), log))
    assert status == (-KILL if number == KILL else 128 + number), log.read_text()
    for path in runs.glob("fishr-*"):
        assert RunFolder(path).state in ("planned", "running", "done")
    assert ended(forked(command(*words), log)) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    return runs


PLACES = {
    "before hydra writes": ("hydra.core.utils:_save_config", 1, "before"),
    "within .hydra": ("hydra.core.utils:_save_config", 2, "before"),
    "after .hydra": ("hydra.core.utils:_save_config", 3, "after"),
    "before prepare": ("fishr_exp.training.run:prepare", 1, "before"),
    "within prepare": ("fishr_exp.training.prepare:split", 2, "before"),
    "after prepare": ("fishr_exp.training.run:prepare", 1, "after"),
    "after the lock": ("fishr_exp.runs.run_folder:RunFolder.acquire", 1, "after"),
    "before the first step": ("fishr_exp.training.loop:optimizer_step", 1, "before"),
    "within an epoch": ("fishr_exp.training.loop:optimizer_step", 3, "after"),
    "before a checkpoint": ("fishr_exp.training.checkpoint:Checkpoints.save", 1, "before"),
    "after a checkpoint": ("fishr_exp.training.checkpoint:Checkpoints.save", 2, "after"),
    "before the best weights": ("fishr_exp.training.checkpoint:Checkpoints.save_best", 1, "before"),
    "within an evaluation": ("fishr_exp.training.evaluation:predictions", 3, "before"),
    "before a record": ("fishr_exp.runs.run_folder:RunFolder.append", 2, "before"),
    "after a record": ("fishr_exp.runs.run_folder:RunFolder.append", 1, "after"),
    "before the result": ("fishr_exp.runs.run_folder:RunFolder.finish", 1, "before"),
    "between result and done": ("fishr_exp.runs.run_folder:RunFolder._write_result", 1, "after"),
    "after done": ("fishr_exp.runs.run_folder:RunFolder.finish", 1, "after"),
    "before tidying": ("fishr_exp.training.checkpoint:Checkpoints.tidy", 1, "before"),
}  # fmt: skip


def of_each(places: dict[str, Moment]) -> Iterator[Any]:
    """Every place with SIGKILL, and with one of the others in turn."""
    for count, (name, moment) in enumerate(places.items()):
        for number in (KILL, (TERM, INT, HUP)[count % 3]):
            yield pytest.param(moment, number, id=f"{name}-{number.name}")


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), of_each(PLACES))
def test_a_signal_at(moment: Moment, number: signal.Signals, whole: Whole, tmp_path: Path) -> None:
    check_whole(whole.first, disturbed(RUN, moment, number, tmp_path))


IN_A_SWEEP = {
    "before the first job": ("hydra._internal.core_plugins.basic_launcher:run_job", 1, "before"),
    "within the second prepare": ("fishr_exp.training.run:prepare", 2, "before"),
    "between two jobs": ("fishr_exp.training.checkpoint:Checkpoints.tidy", 1, "after"),
    "within the second run": ("fishr_exp.training.loop:optimizer_step", 9, "after"),
    "after the second": ("fishr_exp.runs.run_folder:RunFolder.finish", 2, "after"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), of_each(IN_A_SWEEP))
def test_a_signal_in_a_sweep(
    moment: Moment, number: signal.Signals, whole: Whole, tmp_path: Path
) -> None:
    check_whole(whole.runs, disturbed(SWEEP, moment, number, tmp_path))


# --- while MLflow's database is made -----------------------------------------------------------


def with_database(folder: Path) -> tuple[str, ...]:
    return (*SMALL, "tracker=mlflow", f"tracker.tracking_uri=sqlite:///{folder}/mlflow.db")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "number"),
    [(0.0, KILL), (0.1, KILL), (0.3, KILL), (0.0, TERM), (0.1, INT), (0.2, HUP)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else f"{value}s",
)
def test_a_signal_while_a_database_is_made(
    seconds: float, number: signal.Signals, whole: Whole, tmp_path: Path
) -> None:
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")  # for the forks, too
    words, log = (*with_database(tmp_path), f"output_dir={tmp_path}/runs"), tmp_path / "log"

    def call() -> None:
        signal.signal(HUP, signal.SIG_DFL)
        command(*words)()

    pid = forked(call, log)
    while not list(tmp_path.glob(".mlflow.db.new*")):
        time.sleep(0.005)
    time.sleep(seconds)
    assert not (tmp_path / "mlflow.db").exists()
    os.kill(pid, number)
    assert ended(pid) in (-number, 128 + number), log.read_text()
    assert ended(forked(command(*words), log)) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    check_whole(whole.first, tmp_path / "runs")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        statuses = database.execute("SELECT status FROM runs").fetchall()
    assert statuses == [("FINISHED",)]
