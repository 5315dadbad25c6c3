"""A tracker mirrors the run folder: it is sent what the folder holds and it lacks.

All that has to do with time is here: the thread, retries, patience, and what is still to be sent.
A tracker is a subclass of `Mirror` that says how things are sent; see docs/tracking.md.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fishr_exp.core.secrets import masked, masked_value
from fishr_exp.runs.identity import TARGET, flatten, id_of
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.content import End, Point, end_of, point_of
from fishr_exp.tracking.state import State
from fishr_exp.tracking.times import begun

__all__ = ["End", "Mirror", "Point", "unreachable"]

log = logging.getLogger(__name__)

_SOON = 10.0  # seconds to wait at the end before it is said
_BETWEEN = 0.5  # seconds before a busy tracker is tried again
_BRIEFLY = 1.0  # seconds to wait at the end, at an address where nobody answered before

_SENDS_THEM = "fishr-sync, or the same command given again, sends them"

_announced: set[str] = set()  # addresses that people know of, in this process
unreachable: set[str] = set()  # addresses where nobody answered an earlier run of this process


class Mirror(abc.ABC):
    """Send a run folder's configuration, records and result to a tracker, in a thread of its own.

    The folder is the truth, and training does not wait. When the tracker fails, one warning is
    logged, and the thread tries again from time to time; what is missing at the end of the run is
    left to `fishr-sync`, or to the same command, given again.

    A subclass implements the abstract methods, which the thread calls in the order in which they
    stand in this file. They may raise whatever they like: the mirror then begins with `connect`
    again, and asks `last_step` which records are there.

    Args:
        folder: The run folder.
        address: Where it sends to, a URI or an absolute path. Messages name it, and runs with one
            address share a server.
        keywords: The other keywords of the subclass, which build the same mirror again, in any
            current folder: paths must be absolute.

    Attributes:
        name: What messages call the tracker.
        labels: The options of dataset, model and trainer; known once `start` was called.
        identity: By which a tracker can recognize the run of this folder; it never changes.
        started: When the run began, in seconds; the same whenever it is sent.
        run_id: What `open_run` returned, also in an earlier process; empty before.
        error: Why the last try failed; empty after a good one.
        patience: Seconds to wait for the tracker at the end of a run; None: until all is sent or
            sending fails.
        pause: Seconds between two tries after a failure.
        longest_busy: Seconds for which a busy tracker is tried again before that is a failure.
        is_own: Whether it is the run's own tracker. The address of another one is kept only once
            the run was opened there.
        among: The addresses of all trackers of the run, in order, where there are several.
        model_of: What builds a done run's network from its folder; None where nobody has set it.
    """

    name: ClassVar[str] = "the tracker"
    patience: float | None = 30.0
    pause: float = 30.0
    longest_busy: float = 120.0
    is_own: bool = True
    among: Sequence[str] = ()
    model_of: ClassVar[Callable[[Path], Any] | None] = None

    def __init__(self, folder: RunFolder, address: str, /, **keywords: Any) -> None:
        self.folder, self.address = folder, address
        self.labels: Mapping[str, str] = {}
        self.identity = self.run_id = self.error = ""
        self.started = 0.0
        self._advice = ""  # what helps against the error
        self._busy_with = ""  # why it is tried again at the moment
        built_by = id_of(f"{type(self).__module__}.{type(self).__qualname__}")
        self._tracker = {TARGET: built_by, **keywords}
        self._config: Mapping[str, Any] = {}
        self._reached = False  # somebody answered at the address
        self._connected = False  # and the run is open there
        self._sent_step = -1  # the tracker has the records up to this one
        self._warned = False
        self._status = ""  # how the run ended; empty until it has
        self._ended = 0.0  # when `end` was called
        self._news = threading.Event()
        self._given_up = False  # the folder is no longer ours to write to
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    # --- what a tracker implements ---------------------------------------------------------

    def holds_run(self, run_id: str) -> bool:
        """Whether the tracker has this run, as far as is known without connecting.

        Where it is False, everything is sent again.
        """
        del run_id
        return True

    def load(self) -> None:  # noqa: B027 - most trackers need nothing
        """Import what sending needs, where that takes long.

        It is called before the thread starts: a data loader that forks during an import can hang.
        """

    def before_end(self, status: str) -> None:  # noqa: B027 - most trackers need nothing
        """Make what the end needs and the thread must not make; `status` is that of `finish`."""

    @abc.abstractmethod
    def connect(self) -> None:
        """Reach the server; the run is not open yet."""

    @abc.abstractmethod
    def open_run(self) -> str:
        """Take up the run `run_id`, or the one with this `identity`, or make one; return its id."""

    @abc.abstractmethod
    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Send the labels and the flat configuration; they may be there already."""

    @abc.abstractmethod
    def last_step(self) -> int:
        """Return the step of the last record that the tracker has; -1 if it has none."""

    @abc.abstractmethod
    def send_records(self, points: Sequence[Point]) -> None:
        """Send records that the tracker lacks, one or more, in order."""

    @abc.abstractmethod
    def send_end(self, end: End) -> None:
        """Send how the run ended; all records are there. It may have been sent before."""

    def is_busy(self, error: Exception) -> bool:
        """Whether trying again in a moment is likely to help; asked in the thread."""
        del error
        return False

    def advice(self, error: Exception) -> str:
        """Say what helps after a failure; asked in the thread."""
        del error
        return _SENDS_THEM

    def announcement(self) -> str:
        """Say where people find the runs that were sent; empty if there is nothing to say."""
        return ""

    # --- what a run calls ------------------------------------------------------------------

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Open the tracker's run, or take up the one of an earlier start; send what it lacks."""
        self.load()
        self._config, self.labels = config, labels
        self.started = begun(self.folder.records())
        self.identity = next((s.identity for s in self._states()), "") or uuid.uuid4().hex
        self.run_id = self._known().run_id
        with contextlib.suppress(OSError):  # a full disk stops the run elsewhere, or not at all
            if self.is_own:
                self._save("RUNNING")
            else:
                State.identify(self.folder.path, self.identity)
        name = self.name.lower()
        self._thread = threading.Thread(target=self._keep_sending, name=name, daemon=True)
        self._thread.start()

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """Send what the tracker lacks of a run that is done; loads nothing if it has all."""
        if self.lacks("FINISHED"):
            self.start(config, labels)
            self.finish("FINISHED")

    def lacks(self, status: str) -> bool:
        """Whether the tracker lacks anything of a run that ended with `status`."""
        return self._known().ended != status

    def sync(self) -> None:
        """Have the records sent that the tracker lacks; returns at once."""
        self._news.set()

    def finish(self, status: str) -> None:
        """Have all that is missing sent, and how the run ended.

        It waits while that is under way, and no longer than its patience; briefly, where nobody
        answered an earlier run of this process.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        self.end(status)
        self.wait()

    def end(self, status: str) -> None:
        """Do as `finish`, without waiting, which is left to `wait`."""
        if self.address not in unreachable:
            self.before_end(status)
        self._status, self._ended = status, time.monotonic()
        self._news.set()

    def wait(self) -> None:
        """Wait as `finish` does, after `end`."""
        assert self._thread is not None, "start comes first"
        patience = _BRIEFLY if self.address in unreachable else self.patience
        try:
            self._wait(patience)
        finally:
            with self._writing:
                self._given_up = self._thread.is_alive()
        if self._given_up:
            because = f": {self._busy_with}" if self._busy_with else ""
            self.error = f"not done in {patience:g} s{because}"
            self._warn()
        if self.error and not self._reached:
            unreachable.add(self.address)
        if not self.error and self.address not in _announced and self.announcement():
            _announced.add(self.address)
            log.info("%s", self.announcement())

    def _wait(self, patience: float | None) -> None:
        """Wait for the thread to end, and say so where that takes a while."""
        assert self._thread is not None
        over = time.monotonic() - self._ended  # of the patience, as while another tracker ended
        left = None if patience is None else max(0.0, patience - over)
        self._thread.join(_SOON if left is None else min(_SOON, left))
        if self._thread.is_alive() and (left is None or left > _SOON):
            most = "" if patience is None else f", {patience:g} s at most"
            log.info("waiting for %s%s (%s)", self.name, most, self.address)
            self._thread.join(None if left is None else left - _SOON)

    # --- the thread ------------------------------------------------------------------------

    def _keep_sending(self) -> None:
        """Send whenever there is news; after a failure only after a pause, or at the end."""
        while True:
            attempted = time.monotonic()
            status = self._send()
            if status or self._given_up:
                return
            self._news.wait()
            self._news.clear()
            while self.error and not self._status and time.monotonic() < attempted + self.pause:
                self._news.wait(1.0)
                self._news.clear()

    def _send(self) -> str:
        """Send what there is, also the end if the run has ended; return how it ended."""
        began = time.monotonic()
        while True:
            status = self._status
            try:
                self._send_all(status)
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run continues
                first_line = next(iter(str(error).strip().splitlines()), "")
                what = masked(f"{type(error).__name__}: {first_line}")[:1000]
                self._connected = False  # so that the tracker is asked again what it has
                if self.is_busy(error) and time.monotonic() < began + self.longest_busy:
                    self._busy_with = what
                    if self._given_up:
                        return status
                    time.sleep(_BETWEEN)
                    continue
                self.error, self._advice = what, self.advice(error)
                self._warn()
            else:
                if self.error:
                    log.info("%s at %s is back, and has all records", self.name, self.address)
                self.error, self._warned = "", False
            self._busy_with = ""
            return status

    def _send_all(self, status: str) -> None:
        self._connect()
        self._send_records()
        if status:
            with end_of(self.folder, status, self.started) as end:
                self.send_end(end)
            self._save(status)

    def _warn(self) -> None:
        if not self._warned:
            log.warning(
                "%s at %s failed (%s); the run continues without it. Its records are in %s; %s",
                self.name,
                self.address,
                self.error,
                self.folder.path,
                self._advice or _SENDS_THEM,
            )
        self._warned = True

    def _connect(self) -> None:
        """Open the run, unless it is open, and learn what the tracker has."""
        if self._connected:
            return
        self._reached = False
        self.connect()
        self._reached = True
        unreachable.discard(self.address)
        self.run_id = self.open_run()
        if not self.run_id:
            raise ValueError("what answers there is not the tracker's server")
        if self.is_own:
            self._save("RUNNING")
        settings = {**self.labels, **flatten(self._config)}
        self.send_settings({key: masked_value(key, value) for key, value in settings.items()})
        self._sent_step = self.last_step()
        if not self.is_own:
            self._save("RUNNING")
        self._connected = True

    def _send_records(self) -> None:
        missing = [r for r in self.folder.records() if r["step"] > self._sent_step]
        if missing:
            self.send_records([point_of(record) for record in missing])
            self._sent_step = missing[-1]["step"]

    # --- tracking.json ---------------------------------------------------------------------

    def _states(self) -> list[State]:
        """Return what the last mirrors of this folder wrote."""
        try:
            return State.read_all(self.folder.path)
        except ValueError:  # damaged: the tracker finds the run otherwise, or gets it again
            return []

    def _known(self) -> State:
        """Return the state of this folder at this mirror's address; empty if it has none."""
        for state in self._states():
            if state.address == self.address and state.run_id and self.holds_run(state.run_id):
                return state
        return State()

    def _save(self, ended: str) -> None:
        state = State(self._tracker, self.address, self.identity, self.run_id, ended, self.labels)
        with self._writing:
            if self._given_up:
                raise TimeoutError("too late")  # the folder may be another process's by now
            state.write(self.folder.path, self.among)
