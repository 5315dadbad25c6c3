"""`fishr-table DIR --watch`: the table of all runs, again and again as they come in."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fishr_exp.core.errors import ConfigError, printable
from fishr_exp.runs.alike import Alike
from fishr_exp.runs.names import CONFIG, DONE, LOCK, RECORDS, RESULT
from fishr_exp.runs.reading import Runs, by_path, listing, read_into

EVERY = 2.0  # seconds between two looks at the folder, or more:
_SHARE = 4  # a look takes at most one part in so many of the time
_COARSE = 2_000_000_000  # nanoseconds; the coarsest time of change that a file system keeps
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

Files = tuple[tuple[int, int], ...]  # of each file the time of its last change, and its size


@dataclass(frozen=True)
class _Listed:
    """What was in a folder."""

    changed: int  # when, in nanoseconds
    looked: int
    is_run: bool
    inner: list[str]


@dataclass(frozen=True)
class _Read:
    """What was read of a run."""

    changed: int
    files: Files
    runs: Runs  # it alone


class Watched:
    """The runs under a folder; a run whose files are as before is not read again."""

    def __init__(self, root: Path) -> None:
        self.runs = Runs()  # none while there is no such folder
        self._root = root
        self._alike = Alike()
        self._listed: dict[str, _Listed] = {}
        self._read: dict[Path, _Read] = {}

    def look(self) -> bool:
        """Read what has changed; return whether `runs` has."""
        folders, before = self._folders(), self._read
        self._read = {path: self._of(path, folders[path]) for path in by_path(folders)}
        if [*before] == [*self._read] and all(
            own is before[path] or own.runs == before[path].runs for path, own in self._read.items()
        ):
            return False
        self.runs = Runs()
        for own in self._read.values():
            self.runs.done.extend(own.runs.done)
            self.runs.failed.extend(own.runs.failed)
            self.runs.unfinished.extend(own.runs.unfinished)
            self.runs.broken.update(own.runs.broken)
        return True

    def _folders(self) -> dict[Path, int]:
        """Return when each run folder was changed; an unchanged folder is not listed again."""
        found: dict[Path, int] = {}
        listed: dict[str, _Listed] = {}
        waiting = [os.fspath(self._root)]
        while waiting:
            folder = waiting.pop()
            with contextlib.suppress(OSError):  # it has just gone
                changed = os.stat(folder).st_mtime_ns
                own = self._listed.get(folder)
                if own is None or own.changed != changed or changed > own.looked - _COARSE:
                    looked = time.time_ns()
                    own = _Listed(changed, looked, *listing(folder))
                listed[folder] = own
                waiting += own.inner
                if own.is_run:
                    found[Path(folder)] = changed
        self._listed = listed
        return found

    def _of(self, folder: Path, changed: int) -> _Read:
        before = self._read.get(folder)
        if before and before.changed == changed and before.runs.done:
            return before  # its files are written no more; new ones would change the folder
        files = _files(folder)
        if before and before.changed == changed and before.files == files:
            return before
        own = Runs()
        read_into(own, folder, self._alike)
        return _Read(changed, files, own)


def _files(folder: Path) -> Files:
    """Return the state of each file of a run that a table reads."""
    found = []
    for name in (CONFIG, RECORDS, RESULT, DONE):
        try:
            state = os.stat(folder / name)
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append((0, -1))
    return tuple(found)


def watch(options: argparse.Namespace) -> None:
    """Show the table until Ctrl-C: in place on a terminal, elsewhere again when it has changed.

    Nothing is written into a folder.

    Args:
        options: Of the command.

    Raises:
        ConfigError: If an option does not go with it, or is not of its form.
    """
    from fishr_exp.cli.tables import read_layout
    from fishr_exp.reports.conditions import parse_conditions

    _check(options)
    read_layout(options)  # it and the next raise
    parse_conditions(options.where)
    terminal = sys.stdout.isatty()
    show = _Screen() if terminal else _Log()
    watched, text = Watched(options.folder), ""
    try:
        while True:
            first, began = not text, time.perf_counter()
            if watched.look() or first:
                text = _text(options, watched.runs)
            show(text, watched.runs)
            took = time.perf_counter() - began
            time.sleep(EVERY if first else max(EVERY, _SHARE * took))
    except KeyboardInterrupt:
        if terminal:
            sys.stdout.write("\n")


def _check(options: argparse.Namespace) -> None:
    given = {
        "--out": options.out,
        "--protocol": options.protocol,
        "--format": None if options.format == "text" else options.format,
    }
    for option, value in given.items():
        if value is not None:
            reason = "--watch only shows the table of all runs, as text"
            raise ConfigError(option, value, reason, "leave one of the two out")
    if Path(options.folder).is_file():
        hint = "pass the folder of the runs"
        raise ConfigError("--watch", options.folder, "is not a folder", hint)


def _text(options: argparse.Namespace, runs: Runs) -> str:
    from fishr_exp.cli.tables import read_layout
    from fishr_exp.reports.conditions import parse_conditions, runs_where
    from fishr_exp.reports.metric import measured_by
    from fishr_exp.reports.sheets.layout import lay_out
    from fishr_exp.reports.sheets.sheet import to_text
    from fishr_exp.reports.sheets.table_sheet import table_sheet
    from fishr_exp.reports.tables.table import build_tables

    try:
        done = runs_where(runs, parse_conditions(options.where)).done
        if not done:
            of = f" with --where {' '.join(options.where)}" if options.where else ""
            missing = "" if Path(options.folder).exists() else ", a folder that does not exist yet"
            return f"Waiting for a run that is done under {options.folder}{missing}{of}.\n"
        counted, about_others = measured_by(done, options.metric)
        sheets = [table_sheet(table) for table in build_tables(counted, options.metric)]
        text = to_text(lay_out(sheets, read_layout(options)))
        return "".join([text, *(f"{line}\n" for line in about_others)])
    except ConfigError as error:  # such as a row whose runs are still to come
        return f"No table yet: {error}\n"


def _counts(runs: Runs) -> str:
    running = sum(map(_is_running, runs.unfinished))
    numbers = {
        "done": len(runs.done),
        "running": running,
        "stopped": len(runs.unfinished) - running,
        "failed": len(runs.failed),
        "unreadable": len(runs.broken),
    }
    shown = [f"{number} {name}" for name, number in numbers.items() if number or name == "done"]
    plural = "s" * (len(runs) != 1)
    return f"{time.strftime('%H:%M:%S')}  {len(runs)} run{plural}: {', '.join(shown)}"


def _is_running(folder: Path) -> bool:
    """Whether a process has a run folder, as its lock says.

    It asks for the lock for a moment, shared with others who ask, and needs no right to write.
    """
    import fcntl

    with contextlib.suppress(OSError), (folder / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _Log:
    """Writes the table when it has changed, and a line for each run that has failed since."""

    def __init__(self) -> None:
        self._text = ""
        self._wrong: set[str] = set()

    def __call__(self, text: str, runs: Runs) -> None:
        wrong = [f"failed: {path}" for path in runs.failed]
        wrong += [f"unreadable: {path}: {problem}" for path, problem in runs.broken.items()]
        new = [printable(line) for line in wrong if line not in self._wrong]
        if text == self._text and not new:
            return
        table = text if text != self._text else ""
        sys.stdout.write("\n".join([f"{table}{_counts(runs)}", *new, "", ""]))
        sys.stdout.flush()
        self._text, self._wrong = text, set(wrong)


class _Screen:
    """Writes over what is on the screen, at once, as far as the terminal has room."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, text: str, runs: Runs) -> None:
        width, height = shutil.get_terminal_size()
        # What is on the screen now scrolls up, and stays above.
        begin = _HOME if self._begun else "\n" * (height - 1) + _HOME + _END_OF_SCREEN
        lines, room = text.splitlines(), height - 1
        if len(lines) > room:
            left_out = len(lines) - room + 1
            lines = [*lines[: room - 1], f"... {left_out} more lines: the window is too short"]
        counts, how_to_end = _counts(runs), "; Ctrl-C ends"
        fits = len(counts + how_to_end) < width
        lines = [*lines[:room], counts + how_to_end if fits else counts]
        cut = [line if len(line) < width else f"{line[: width - 2]}>" for line in lines]
        sys.stdout.write(begin + f"{_END_OF_LINE}\n".join(cut) + _END_OF_LINE + _END_OF_SCREEN)
        sys.stdout.flush()
        self._begun = True
