"""Writes a sheet, a table of strings, as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from fishr_exp.reports.sheets.latex import to_latex

MISSING = "X"  # in a cell whose runs are missing


@dataclass(frozen=True)
class Line:
    """A line of a CSV: what identifies it, and what was measured."""

    identity: Mapping[str, str]
    measures: Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table for people, with cells as strings, and its CSV lines for programs."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int  # number of first columns with text; the next ones are numbers
    notes: Sequence[str]  # the first one says what the numbers are
    lines: Sequence[Line] = field(default_factory=list)
    last: int = 0  # number of last columns with text
    label: str = ""  # what LaTeX refers to it by; empty: by its title
    keys: Sequence[str] = ()  # short names of the columns, by which they can be chosen too
    about: Mapping[str, Sequence[str]] = field(default_factory=dict)  # note -> columns it explains
    compared: frozenset[int] = frozenset()  # columns in which the highest number is the best
    bold: frozenset[tuple[int, int]] = frozenset()  # cells, as (row, column)

    @property
    def alignment(self) -> list[str]:
        """The side of each column on which its cells are: `left` or `right`."""
        numbers = len(self.headers) - self.left - self.last
        return ["left"] * self.left + ["right"] * numbers + ["left"] * self.last

    def written(self, escape: Callable[[str], str], bold: Callable[[str], str] = str) -> Sheet:
        """Return the sheet with each header and cell on one line, escaped, and bold where it is."""

        def clean(cell: str) -> str:
            return escape(on_one_line(cell))

        rows = [
            [bold(clean(c)) if (i, j) in self.bold else clean(c) for j, c in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        return replace(
            self,
            title=on_one_line(self.title),
            headers=[clean(header) for header in self.headers],
            rows=rows,
            notes=[on_one_line(note) for note in self.notes],
        )


def to_text(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` for a terminal."""
    written = (sheet.written(str) for sheet in sheets)
    parts = ("\n".join([s.title, "", _tabulate(s, "simple"), "", *s.notes]) for s in written)
    return "\n\n".join(parts) + "\n"


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` in Markdown, as GitHub reads it."""
    parts = []
    for sheet in sheets:
        written = sheet.written(escape_markdown, "**{}**".format)
        notes = [f"- {escape_markdown(note)}" for note in written.notes]
        title = f"### {escape_markdown(written.title)}"
        parts.append("\n".join([title, "", _tabulate(written, "pipe"), "", *notes]))
    return "\n\n".join(parts) + "\n"


def to_csv(sheets: Sequence[Sheet]) -> str:
    """Write all `sheets` as one CSV, with separate columns for mean, error and count.

    Accuracies are in percent, differences in points; missing values are empty. A name that a
    spreadsheet would run as a formula has an apostrophe before it.
    """
    lines = [line for sheet in sheets for line in sheet.lines]
    identifying = [name for line in lines for name in line.identity]
    measured = [name for line in lines for name in line.measures]
    out = io.StringIO()
    names = list(dict.fromkeys(identifying + measured))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(inert, names))
    for line in lines:
        cells = {**line.identity, **line.measures}
        writer.writerow(inert(cells.get(name, "")) for name in names)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def inert(cell: str) -> str:
    """Return a cell of a CSV that no spreadsheet runs; a number stays a number.

    Source: OWASP, CSV injection. Of tabs and ends of lines, which count too, `on_one_line` leaves
    none.
    """
    cell = cell if cell.isprintable() else on_one_line(cell)
    if not cell.startswith(("=", "+", "-", "@")):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"


def on_one_line(text: str) -> str:
    """Return a text without ends of lines, and with control characters escaped."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def escape_markdown(text: str) -> str:
    """Escape `text` for a Markdown table."""
    return re.sub(r"([\\`*_<>\[\]|~&#$])", r"\\\1", text)


def _tabulate(sheet: Sheet, style: str) -> str:
    return tabulate(
        sheet.rows,
        sheet.headers,
        tablefmt=style,
        colalign=sheet.alignment,
        disable_numparse=True,
    )
