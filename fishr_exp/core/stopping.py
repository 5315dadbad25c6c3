"""The signals that ask a process to stop, and a parent or a terminal that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

STOPPING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, preemption, a closed terminal
    if hasattr(signal, name)  # Windows has no SIGHUP
)

_INTERVAL = 0.5  # seconds between two looks at the parent


def stop_with(parent: int) -> None:
    """Stop this process soon after its parent is gone, even if that was killed.

    A run takes SIGTERM as it always does: it ends after a checkpoint. The process is then ended,
    too, since nobody waits for its result or has more work for it.

    Args:
        parent: The number of the process that started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)
        while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # a run has yet to save
            time.sleep(_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)

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
