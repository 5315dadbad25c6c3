"""Writes a sheet, a table of strings, as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from fishr_exp.reports.sheets.latex import to_latex


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
            return escape(" ".join(cell.split()))

        rows = [
            [bold(clean(c)) if (i, j) in self.bold else clean(c) for j, c in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        return replace(self, headers=[clean(header) for header in self.headers], rows=rows)


def to_text(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` for a terminal."""
    parts = (
        "\n".join([s.title, "", _tabulate(s.written(str), "simple"), "", *s.notes]) for s in sheets
    )
    return "\n\n".join(parts) + "\n"


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` in Markdown, as GitHub reads it."""
    parts = []
    for sheet in sheets:
        table = _tabulate(sheet.written(escape_markdown, "**{}**".format), "pipe")
        notes = [f"- {escape_markdown(note)}" for note in sheet.notes]
        parts.append("\n".join([f"### {escape_markdown(sheet.title)}", "", table, "", *notes]))
    return "\n\n".join(parts) + "\n"


def to_csv(sheets: Sequence[Sheet]) -> str:
    """Write all `sheets` as one CSV, with separate columns for mean, error and count.

    Accuracies are in percent, differences in points; missing values are empty.
    """
    lines = [line for sheet in sheets for line in sheet.lines]
    identifying = [name for line in lines for name in line.identity]
    measured = [name for line in lines for name in line.measures]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(identifying + measured)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**line.identity, **line.measures} for line in lines)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


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
