"""Processes whose parent is gone, and signals in and between the jobs of a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fishr_exp.core import stopping
from fishr_exp.core.errors import Stopped

PATIENCE = 20  # seconds; a process that is to end takes one


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    earlier = {number: signal.getsignal(number) for number in stopping.STOPPING}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)
    stopping._waiting = 0


def forked(call: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        call()
    finally:
        os._exit(70)


def parent_of_one(call: Callable[[], None], number: Path) -> int:
    """Fork a process that forks another, which calls `call`; return the first one's number."""

    def parent() -> None:
        child = forked(call)
        number.with_suffix(".new").write_text(str(child))
        number.with_suffix(".new").rename(number)
        time.sleep(PATIENCE)

    return forked(parent)


def awaited(condition: Callable[[], bool]) -> bool:
    for _ in range(PATIENCE * 50):
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def ends_with_parent(call: Callable[[], None], ready: Path, tmp_path: Path) -> bool:
    """Kill the parent of a process once that is ready; return whether it ends, too."""
    parent = parent_of_one(call, tmp_path / "number")
    assert awaited(ready.exists)
    assert awaited((tmp_path / "number").exists)
    child = int((tmp_path / "number").read_text())
    assert not is_gone(child)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    if awaited(lambda: is_gone(child)):
        return True
    os.kill(child, signal.SIGKILL)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("begin", [stopping.stop_with, stopping.begin_job_process])
def test_a_process_without_a_run_ends_with_its_parent(
    begin: Callable[[int], None], tmp_path: Path
) -> None:
    def child() -> None:
        begin(os.getppid())
        (tmp_path / "ready").touch()
        time.sleep(PATIENCE)
        time.sleep(PATIENCE)  # a signal may have ended the one before

    assert ends_with_parent(child, tmp_path / "ready", tmp_path)


@needs_proc
def test_a_run_saves_first(tmp_path: Path) -> None:
    def child() -> None:
        stopping.begin_job_process(os.getppid())
        noted = []
        outside = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
        (tmp_path / "ready").touch()
        while not noted:
            time.sleep(0.02)
        time.sleep(2 * stopping._INTERVAL)  # it takes a while
        (tmp_path / "saved").touch()
        signal.signal(signal.SIGTERM, outside)
        time.sleep(PATIENCE)

    assert ends_with_parent(child, tmp_path / "ready", tmp_path)
    assert (tmp_path / "saved").exists()


@needs_proc
def test_a_process_that_ignores_sigterm_ends_too(tmp_path: Path) -> None:
    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopping.begin_job_process(os.getppid())
        (tmp_path / "ready").touch()
        time.sleep(PATIENCE)

    assert ends_with_parent(child, tmp_path / "ready", tmp_path)


def test_a_process_whose_parent_is_gone_already_ends() -> None:
    def child() -> None:
        stopping.stop_with(2**22 + 1)  # no process has this number
        time.sleep(PATIENCE)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(child), 0)[1]) in (
        -signal.SIGTERM,
        128 + signal.SIGTERM,
    )


@pytest.mark.parametrize("number", stopping.STOPPING)
def test_a_signal_between_two_jobs_stops_the_next(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "stop_with", lambda parent: None)
    signal.signal(number, signal.SIG_DFL)  # whoever started the tests may ignore it
    stopping.begin_job_process(os.getppid())
    signal.raise_signal(number)  # raises nothing
    for _ in range(2):
        with pytest.raises(Stopped) as stopped, stopping.stopping_jobs():
            pytest.fail("a job began")
        assert stopped.value.signal == number


def test_a_signal_in_a_job_stops_it_and_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "stop_with", lambda parent: None)
    stopping.begin_job_process(os.getppid())
    with stopping.stopping_jobs():
        pass
    went_on = False
    with pytest.raises(Stopped), stopping.stopping_jobs():  # noqa: PT012 - the block is the job
        signal.raise_signal(signal.SIGTERM)
        went_on = True
    assert not went_on
    with pytest.raises(Stopped), stopping.stopping_jobs():
        pytest.fail("a job began")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no such masks")
def test_processes_that_are_started_get_signals_once_they_are_prepared() -> None:
    ask = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    ready = f"from fishr_exp.core.stopping import *; begin_job_process({os.getpid()}); {ask}"

    def blocked(code: str) -> str:
        run = [sys.executable, "-c", code]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    with stopping.starting_jobs():
        assert blocked(ask) == str(sorted(stopping.STOPPING))
        assert blocked(ready) == "[]"
    assert blocked(ask) == "[]"
