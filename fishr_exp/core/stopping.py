"""The signals that ask a process to stop, and output to a terminal that is gone."""

from __future__ import annotations

import contextlib
import os
import signal

STOPPING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, preemption, a closed terminal
    if hasattr(signal, name)  # Windows has no SIGHUP
)


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
