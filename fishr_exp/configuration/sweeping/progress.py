"""How far a sweep is: a line under the bar of the run on a terminal, else a line per finished run.

What a run came to is read from its folder, so runs of other processes, of a cluster or of another
command count as soon as they end.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fishr_exp.configuration.sweeping.runs import SweptRun
from fishr_exp.core.errors import ConfigError, TakenError
from fishr_exp.runs.names import LOCK
from fishr_exp.runs.records import Result
from fishr_exp.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

_LEAST = 1.0  # seconds between two looks at the folders, where other processes train the runs
_SHOWN = ("trainer", "trainer.gamma", "seed", "test_domains")  # words that a line names anyway
_SHARE = 20  # a look takes at most one part in so many of the time


@dataclass
class Made:
    """What the runs of a sweep came to, as far as it is."""

    done: list[SweptRun] = field(default_factory=list)
    failed: list[SweptRun] = field(default_factory=list)
    sent: list[SweptRun] = field(default_factory=list)  # done before, and sent to the tracker
    seconds_shared: dict[int, float] = field(default_factory=dict)  # by position
    seconds: dict[tuple[object, ...], list[float]] = field(default_factory=dict)  # by kind


class Progress:
    """Tells how far a sweep is.

    Args:
        before: The number of its runs that were done before it began.
        failed: The number of those that had failed before, and are not tried again.
        todo: The others.
        at_a_time: How many runs the launcher starts at once, as far as is known.
    """

    def __init__(
        self, before: int, failed: int, todo: Sequence[SweptRun], at_a_time: int = 1
    ) -> None:
        self.before, self.failed_before = before, failed
        self.made = Made()
        self.total = before + failed + len(todo)
        self._open = {run.position: run for run in todo}
        self._at_a_time = max(1, at_a_time)
        self._bar: tqdm[Any] | None = None
        self._lock = threading.Lock()
        self._ours: set[int] = set()
        self._awaited: set[str] = set()

    @property
    def ended(self) -> int:
        """Runs that are done or have failed."""
        return self.total - len(self._open)

    def ours(self, runs: Iterable[SweptRun]) -> None:
        """Note that this command trains these runs."""
        self._ours |= {run.position for run in runs}

    def not_ours(self, run: SweptRun) -> None:
        """Note that another command trains a run, or has trained it."""
        self._ours.discard(run.position)

    def waiting_for(self, names: Sequence[str]) -> None:
        """Say which runs of other commands are waited for, each once."""
        if new := [name for name in names if name not in self._awaited]:
            self._awaited |= {*new}
            shown = ", ".join(new[:3]) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
            log.info("waiting for %s, trained by another command", shown)

    def update(self) -> None:
        """Look which runs have ended, and say so."""
        with self._lock:
            for run in list(self._open.values()):
                if run.is_done:
                    self._note_done(run)
                elif run.position in self._ours and run.has_failed:
                    self._note_failed(run)
            self._show()

    def sent(self, run: SweptRun) -> None:
        """Note a run that was done before, and whose tracker has it now."""
        with self._lock:
            if self._open.pop(run.position, None) is not None:
                self.made.sent.append(run)

    def lost(self, run: SweptRun) -> None:
        """Note a run that ended without a result."""
        with self._lock:
            if self._open.get(run.position) is run and not run.is_done:
                self._note_failed(run)
                self._show()

    def _note_done(self, run: SweptRun) -> None:
        del self._open[run.position]
        made = self.made
        made.done.append(run)
        with contextlib.suppress(ConfigError, OSError, ValueError):
            result = Result.from_json(RunFolder(run.folder).result_of_done())
            kind = (*run.kind, result.shared is not None)
            made.seconds.setdefault(kind, []).append(result.seconds)
            if result.shared:
                made.seconds_shared[run.position] = result.shared.seconds
            self._say(run, _named(result), _came_to(result))

    def _note_failed(self, run: SweptRun) -> None:
        del self._open[run.position]
        self.made.failed.append(run)
        why = "no result"
        with contextlib.suppress(ConfigError, OSError):
            written = RunFolder(run.folder).result() or {}
            if run.has_failed:
                why = f"failed: {str(written.get('error', '')).partition('; records')[0]}"
        self._say(run, run.folder.name, why)

    def _say(self, run: SweptRun, name: str, what: str) -> None:
        if self._bar is None:
            words = [word for word in run.varied if word.partition("=")[0] not in _SHOWN]
            named = " ".join([name, *words])
            left = f"; {self.left}" if self._open and self.left else ""
            log.info("[%d/%d] %s: %s%s", self.ended, self.total, named, what, left)

    @property
    def left(self) -> str:
        """About how long it still takes; empty while that is not known."""
        seconds = self.seconds_left()
        return f"about {duration(seconds)} left" if seconds is not None else ""

    def seconds_left(self) -> float | None:
        """How long it still takes, by the seconds of runs of equal cost; None while unknown."""
        known = {kind: sum(of) / len(of) for kind, of in self.made.seconds.items()}
        if not known:
            return None
        mean = sum(known.values()) / len(known)
        total = 0.0
        for run in self._open.values():
            kinds = [(*run.kind, shares) for shares in (run.trunk is not None, False, True)]
            total += next((known[kind] for kind in kinds if kind in known), mean)
        return total / min(self._at_a_time, max(1, len(self._open)))

    def line(self) -> str:
        """Say how far the sweep is, in a line."""
        failed = self.failed_before + len(self.made.failed)
        parts = [f"{self.ended - failed} of {self.total} done"]
        parts += [f"{failed} failed"] if failed else []
        parts += [self.left] if self._open and self.left else []
        return ", ".join(parts)

    def summary(self, folder: Path) -> list[str]:
        """Say at the end what was trained, and the command for the table."""
        made = self.made
        own = [run for run in made.done if run.position in self._ours]
        shared = [s for position, s in made.seconds_shared.items() if position in self._ours]
        parts = [f"{len(own)} trained"]
        if shared:
            saved = f", which saved about {duration(sum(shared))}"
            parts[0] += f" ({len(shared)} of them with shared steps{saved})"
        parts += [f"{self.before} done before"] if self.before else []
        parts += [f"{len(made.sent)} sent to the tracker again"] if made.sent else []
        elsewhere = len(made.done) - len(own)
        parts += [f"{elsewhere} trained by another command"] if elsewhere else []
        failed = self.failed_before + len(made.failed)
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{len(self._open)} without a result"] if self._open else []
        runs = f"{self.total} run{'s' * (self.total != 1)}"
        table = [f"table: fishr-table {folder}"] if self.before or made.done or made.sent else []
        return [f"{runs}: {', '.join(parts)}", *table]

    @contextlib.contextmanager
    def shown(self, *, watching: bool) -> Iterator[None]:
        """In the block, show the line on a terminal.

        Args:
            watching: Whether to look at the folders from time to time, in a thread.
        """
        ended = threading.Event()
        if sys.stderr.isatty() and self._open:
            # Below the bar of the run, which takes the first free line.
            self._bar = tqdm(bar_format="{desc}", position=1, leave=False, dynamic_ncols=True)
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        try:
            self._show()
            if watching:
                thread.start()
            yield
        finally:
            ended.set()
            if watching:
                thread.join()
            if self._bar is not None:
                self._bar.close()
                sys.stderr.write("\r")  # it leaves the cursor where its text ended
                self._bar = None

    def _watch(self, ended: threading.Event) -> None:
        pause = _LEAST
        while not ended.wait(pause):
            began = time.perf_counter()
            self.update()
            pause = max(_LEAST, _SHARE * (time.perf_counter() - began))

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self.line())


def _named(result: Result) -> str:
    """What a run is, in a few words."""
    outline = result.outline
    gamma = f" gamma={outline.gamma:g}" if outline.gamma is not None else ""
    domains = ", ".join(outline.test_domains)
    return f"{outline.labels['trainer']}{gamma} seed={outline.seed} [{domains}]"


def _came_to(result: Result) -> str:
    """What a run came to."""
    shown = [a for a in result.test["accuracy"].values() if a is not None]
    parts = [f"test {100 * sum(shown) / len(shown):.1f} %"] if shown else []
    validation = result.scores.mean("accuracy", "validation")
    parts += [f"validation {100 * validation:.1f} %"] if validation is not None else []
    return ", ".join([*parts, duration(result.seconds)])


def duration(seconds: float) -> str:
    """Write a time with the two units that say most."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


def is_taken(folder: Path) -> bool:
    """Whether another process has a run folder; asks for its lock for a moment."""
    if not (folder / LOCK).exists():
        return False
    with RunFolder(folder) as run, contextlib.suppress(ConfigError):
        try:
            run.lock(patience=0)
        except TakenError:
            return True
    return False
