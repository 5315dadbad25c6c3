"""Writes tables and figures into a folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.figures.gamma import draw, is_drawn
from fishr_exp.reports.sheets.latex import to_latex_notes
from fishr_exp.reports.sheets.sheet import FORMATS, Sheet
from fishr_exp.reports.tables.table import Table
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.reading import ACCURACY

SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}
CURVES = "curves"
_LONGEST = 60  # characters of the names in a figure's name; a file's name may have 255 bytes


def write(
    sheets: Sequence[Sheet], out: Path, stem: str, formats: Sequence[str] = tuple(SUFFIXES)
) -> list[Path]:
    """Write sheets as `out`/`stem`.md and so on, and LaTeX's notes as `stem`-notes.tex.

    Returns:
        The files written.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    contents = {f"{stem}.{SUFFIXES[name]}": FORMATS[name](sheets) for name in formats}
    if "latex" in formats:
        contents[f"{stem}-notes.tex"] = to_latex_notes(sheets)
    with explaining_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(out / name, content.encode(errors="backslashreplace"))
    return [out / name for name in contents]


def draw_all(
    tables: Sequence[Table],
    out: Path,
    rename: Callable[[str], str] = str,
    everything: bool = False,
) -> list[Path]:
    """Draw the figure of each table into `out`, with names as `rename` has them.

    A figure that nobody could read is left out, unless `everything` is asked for.

    Returns:
        The files written.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    files: list[Path] = []
    with explaining_os_errors(out):
        for number, table in enumerate(tables, start=1):
            if everything or is_drawn(table):
                files += draw(table, out / _figure_name(table, number, len(tables)), rename)
    return files


def remove_stale(tables: Sequence[Table], out: Path, drawn: Sequence[Path]) -> list[Path]:
    """Remove figures of earlier runs of the command that it has left out now.

    Args:
        tables: The tables of now.
        out: Where their figures are.
        drawn: The files that were written now.

    Returns:
        The files removed.

    Raises:
        ConfigError: If one cannot be removed.
    """
    stems = [_figure_name(table, n, len(tables)) for n, table in enumerate(tables, start=1)]
    stems.append(stem_of(CURVES, tables[0].metric))
    files = [out / f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png")]
    stale = [file for file in files if file not in drawn and file.is_file()]
    with explaining_os_errors(out):
        for file in stale:
            file.unlink()
    return stale


def _figure_name(table: Table, number: int, of: int) -> str:
    if of == 1:
        return stem_of("figure", table.metric)
    name = re.sub(r"[^\w-]+", "-", "-".join([table.dataset, *table.test_domains]))
    return stem_of(f"figure-{number}-{name[:_LONGEST]}", table.metric)


def stem_of(stem: str, metric: str) -> str:
    """Return how the files of a table are named, each metric's by itself."""
    name = re.sub(r"[^\w-]+", "-", metric)[:_LONGEST]
    return stem if metric == ACCURACY else f"{stem}-{name}"


@contextlib.contextmanager
def explaining_os_errors(out: Path) -> Iterator[None]:
    """Turn a failure to write in the block into a line about `--out`.

    Raises:
        ConfigError: If there is one.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "--out",
            out,
            f"this folder cannot be written ({error.strerror or error})",
            "pass another folder with --out",
        ) from error
