"""Signals that ask a run to stop: handled between two steps, when a checkpoint is written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Minibatch
from fishr_exp.core.errors import Stopped
from fishr_exp.core.stopping import STOPPING, leave_closed_terminal
from fishr_exp.data.minibatches import awaited

ANNOUNCING = (
    signal.SIGUSR1,
    signal.SIGUSR2,
)  # sent ahead by a cluster; noted where a handler is installed


class InterruptedEvaluationError(Exception):
    """An evaluation was interrupted by a signal; it can be repeated."""


class Signals:
    """In a `with` block, note signals instead of ending by them.

    The loop asks for `pending`, saves, and calls `handle`. A signal that comes again a
    second later or more acts at once. Signals that the process ignores stay ignored, and
    outside the main thread nothing is noted, for Python delivers none there.

    Attributes:
        pending: The number of the signal that waits; 0: none.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._since = 0.0
        self._earlier: dict[int, Any] = {}  # the handlers that were there

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (*STOPPING, *ANNOUNCING):
                handler = signal.getsignal(number)
                if callable(handler) or (number in STOPPING and handler is not signal.SIG_IGN):
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
        if self.pending and kind is None:  # it came too late to be asked for
            signal.raise_signal(self.pending)

    def when_pending(self, act: Callable[[], None]) -> Callable[[], None]:
        """Return a function that calls `act` if a signal waits and there is one process.

        Several processes must stop at the same place, and not each in its own wait.
        """

        def check() -> None:
            if self.pending and distributed.world_size() == 1:
                act()

        return check

    def interrupting(self, chunks: Iterable[Minibatch]) -> Iterator[Minibatch]:
        """Pass on the chunks of an evaluation.

        Raises:
            InterruptedEvaluationError: When a signal waits, also in a wait for a chunk. Ranks go
                on to the end.
        """

        def interrupt() -> None:
            raise InterruptedEvaluationError

        check = self.when_pending(interrupt)
        for chunk in awaited(chunks, check):
            check()
            yield chunk

    def handle(self, number: int) -> None:
        """Do what the process would have done with the signal; that may be nothing.

        Raises:
            Stopped: If no handler was installed, or the handler does nothing.
            SystemExit: If a launcher has put the run into its queue again.
        """
        self.pending = 0
        handler = self._earlier.get(number)
        if not callable(handler) or handler is signal.default_int_handler:
            raise Stopped(number)
        try:
            handler(number, None)
        except Exception as error:  # a launcher's, which has put the run into its queue too often
            raise Stopped(number) from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        leave_closed_terminal()
        if self.pending == number and time.monotonic() > self._since + 1:
            raise Stopped(number)  # no sooner: a terminal and a launcher may both send one
        if self.pending != number:
            self.pending, self._since = number, time.monotonic()
