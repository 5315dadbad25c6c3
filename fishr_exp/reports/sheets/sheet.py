"""Writes a sheet, a table of strings, as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate


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
    notes: Sequence[str]
    lines: Sequence[Line] = field(default_factory=list)
    last: int = 0  # number of last columns with text
    wide: bool = False  # small print in LaTeX, to fit a page


def to_text(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` for a terminal."""
    parts = ("\n".join([s.title, "", _lay_out(s, "simple"), "", *s.notes]) for s in sheets)
    return "\n\n".join(parts) + "\n"


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Write `sheets` in Markdown, as GitHub reads it."""
    parts = []
    for sheet in sheets:
        table = _lay_out(sheet, "pipe", escape_markdown)
        notes = [f"- {escape_markdown(note)}" for note in sheet.notes]
        parts.append("\n".join([f"### {escape_markdown(sheet.title)}", "", table, "", *notes]))
    return "\n\n".join(parts) + "\n"


def to_latex(sheets: Sequence[Sheet]) -> str:
    r"""Write `sheets` for `\input` in a document that uses the packages booktabs and graphicx."""
    return "% Needs \\usepackage{booktabs,graphicx}.\n" + "\n".join(_latex_table(s) for s in sheets)


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


def escape_latex(text: str) -> str:
    """Escape `text` for LaTeX, that is, for pdflatex with its default fonts.

    A character that those fonts lack is shown by its code point: `[U+7D20]`.
    """
    return "".join(
        _LATEX.get(c, c if _KNOWN.fullmatch(c) else f"[U+{ord(c):04X}]")
        for c in unicodedata.normalize("NFC", text)
    )


_KNOWN = re.compile("[ -~À-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ]")
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "√": r"$\surd$",
    "≈": r"$\approx$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∘": r"$\circ$",
    "–": "--",
}


def _lay_out(sheet: Sheet, style: str, change: Callable[[str], str] = str) -> str:
    headers, rows = _cells(sheet, change)
    return tabulate(
        rows, headers, tablefmt=style, colalign=_alignment(sheet), disable_numparse=True
    )


def _alignment(sheet: Sheet) -> list[str]:
    numbers = len(sheet.headers) - sheet.left - sheet.last
    return ["left"] * sheet.left + ["right"] * numbers + ["left"] * sheet.last


def _cells(sheet: Sheet, change: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Put each cell on one line, and escape it."""

    def clean(cell: str) -> str:
        return change(" ".join(cell.split()))

    return [clean(h) for h in sheet.headers], [[clean(c) for c in row] for row in sheet.rows]


def _latex_table(sheet: Sheet) -> str:
    headers, rows = _cells(sheet, escape_latex)
    headers = [r"$\gamma$" if header == "gamma" else header for header in headers]
    # A hyphen is not a minus sign.
    rows = [[re.sub(r"(^|[\[ ])-(?=\d)", r"\1$-$", cell) for cell in row] for row in rows]
    small = [r"  \footnotesize\setlength{\tabcolsep}{3pt}"] if sheet.wide else []
    notes = escape_latex(" ".join(sheet.notes)).replace("/", r"/\allowbreak{}")  # long paths
    columns = "".join(side[0] for side in _alignment(sheet))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(sheet.title)}.}}",
        r"  \smallskip",
        *small,
        # Its natural width, but at most the width of the text.
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        rf"    {' & '.join(headers)} \\",
        r"    \midrule",
        *(rf"    {' & '.join(row)} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"  \par\smallskip",
        rf"  \parbox{{\linewidth}}{{\footnotesize\raggedright {notes}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
