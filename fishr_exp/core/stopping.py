"""The signals that ask a process to stop, and a parent or a terminal that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from fishr_exp.core.errors import Stopped

STOPPING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, preemption, a closed terminal
    if hasattr(signal, name)  # Windows has no SIGHUP
)

_INTERVAL = 0.5  # seconds between two looks at the parent


_waiting = 0  # a signal that asked this process to stop, between two jobs or in one
_in_job = False


@contextlib.contextmanager
def starting_jobs() -> Iterator[None]:
    """In the block, start processes that get no signal before their `begin_job_process`.

    One that is interrupted while it imports would end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker  # which takes time to import

    # Python starts it with the first process, and lets signals through again after that.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_job_process(parent: int) -> None:
    """Let this process, which runs the jobs of a launcher, stop as a command does.

    A signal ends its job, after a checkpoint if there is one to write, and no other job begins.
    Between two jobs it is noted: a process that died would take those of the other jobs with it.

    Args:
        parent: The number of the process that started this one, and with which it ends.
    """
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    stop_with(parent)


def asked_to_stop() -> int:
    """Return the signal that asked this process to begin no other job; 0: none did."""
    return _waiting


@contextlib.contextmanager
def stopping_jobs() -> Iterator[None]:
    """In the block, which is a job, let signals of `begin_job_process` raise `Stopped`.

    Raises:
        Stopped: Also if one came before it.
    """
    global _in_job
    _in_job = True
    try:
        if _waiting:
            raise Stopped(_waiting)
        yield
    finally:
        _in_job = False


def _note(number: int, frame: FrameType | None) -> None:
    del frame
    global _waiting
    _waiting = number
    leave_closed_terminal()
    if _in_job:
        raise Stopped(number)


def stop_with(parent: int) -> None:
    """Stop this process soon after its parent is gone, even if that was killed.

    A run takes SIGTERM as it always does: it ends after a checkpoint. The process is then ended,
    too, since nobody waits for its result or has more work for it.

    Args:
        parent: The number of the process that started this one.
    """
    outside_of_runs = signal.getsignal(signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)
        while signal.getsignal(signal.SIGTERM) != outside_of_runs:  # a run has yet to save
            time.sleep(_INTERVAL)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def leave_closed_terminal() -> None:
    """Let output go nowhere if its terminal is gone, where each write would be an error."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
