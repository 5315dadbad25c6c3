"""`fishr-table DIR --watch`: the table of all runs, again and again as they come in."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.alike import Alike
from fishr_exp.runs.names import CONFIG, DONE, RECORDS, RESULT
from fishr_exp.runs.reading import Runs, read_into, run_folders

EVERY = 2.0  # seconds between two looks at the folder
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

Signature = tuple[tuple[int, int], ...]


class Watched:
    """The runs under a folder; a run whose files are as before is not read again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._alike = Alike()
        self._read: dict[Path, tuple[Signature, Runs]] = {}

    def runs(self) -> Runs:
        """Read what has changed, and return all runs; none while there is no such folder."""
        try:
            folders = run_folders(self._root)
        except OSError:
            folders = []
        self._read = {path: self._of(path) for path in folders}
        together = Runs()
        for _, own in self._read.values():
            together.done.extend(own.done)
            together.failed.extend(own.failed)
            together.unfinished.extend(own.unfinished)
            together.broken.update(own.broken)
        return together

    def _of(self, folder: Path) -> tuple[Signature, Runs]:
        now = _signature(folder)
        before = self._read.get(folder)
        if before and before[0] == now:
            return before
        own = Runs()
        read_into(own, folder, self._alike)
        return now, own


def _signature(folder: Path) -> Signature:
    """Return when each file of a run that a table reads was changed, and its size."""
    found = []
    for name in (CONFIG, RECORDS, RESULT, DONE):
        try:
            state = os.stat(folder / name)
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append((0, -1))
    return tuple(found)


def watch(options: argparse.Namespace, every: float = EVERY) -> None:
    """Show the table until Ctrl-C: in place on a terminal, elsewhere again when it has changed.

    Nothing is written into a folder.

    Args:
        options: Of the command.
        every: Seconds between two looks at the folder.

    Raises:
        ConfigError: If an option does not go with it, or does not fit the runs.
    """
    _check(options)
    watched, terminal = Watched(options.folder), sys.stdout.isatty()
    shown: str | None = None
    try:
        while True:
            runs = watched.runs()
            text = _text(options, runs)
            if terminal:
                _redraw(text.splitlines(), _counts(runs), first=shown is None)
            elif text != shown:
                sys.stdout.write(f"{text}{_counts(runs)}\n\n")
                sys.stdout.flush()
            shown = text
            time.sleep(every)
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


def _text(options: argparse.Namespace, runs: Runs) -> str:
    from fishr_exp.cli.tables import read_layout
    from fishr_exp.reports.conditions import parse_conditions, runs_where
    from fishr_exp.reports.sheets.layout import lay_out
    from fishr_exp.reports.sheets.sheet import to_text
    from fishr_exp.reports.sheets.table_sheet import table_sheet
    from fishr_exp.reports.tables.table import build_tables

    layout = read_layout(options)
    done = runs_where(runs, parse_conditions(options.where)).done
    if not done:
        return f"Waiting for a run that is done under {options.folder}.\n"
    return to_text(lay_out([table_sheet(table) for table in build_tables(done)], layout))


def _counts(runs: Runs) -> str:
    broken = f", {len(runs.broken)} unreadable" if runs.broken else ""
    return (
        f"{time.strftime('%H:%M:%S')}  {len(runs)} run{'s' * (len(runs) != 1)}:"
        f" {len(runs.done)} done, {len(runs.unfinished)} unfinished,"
        f" {len(runs.failed)} failed{broken}; Ctrl-C ends"
    )


def _redraw(lines: list[str], last: str, *, first: bool) -> None:
    """Write over what is on the screen, at once, as far as the terminal has room."""
    width, height = shutil.get_terminal_size()
    room = max(height - 1, 1)
    if len(lines) > room:
        left_out = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {left_out} more lines: the terminal is too short"]
    shown = [line[: width - 1] + _END_OF_LINE for line in [*lines, last]]
    begin = f"{_HOME}{_END_OF_SCREEN}" if first else _HOME
    sys.stdout.write(begin + "\n".join(shown) + _END_OF_SCREEN)
    sys.stdout.flush()
