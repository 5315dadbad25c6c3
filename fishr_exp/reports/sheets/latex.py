r"""Writes sheets as LaTeX: floats for `\input`, and their notes apart from them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fishr_exp.reports.sheets.sheet import Sheet

COLUMN, PAGE = 240, 400  # points, of one column of a two-column paper, and of its text
# Width of a character and space beside a column, in points, in normal and in small print.
NORMAL, SMALL = (4.7, 12.0), (3.95, 6.0)


def to_latex(sheets: Sequence[Sheet]) -> str:
    r"""Write the tables of `sheets`, for a document that uses the packages booktabs and graphicx.

    A table that is too wide for one column of a two-column paper is across both of them. It has a
    `\label`, and its caption says what the numbers are; the other notes are in `to_latex_notes`.
    """
    tables = [_table(s, label) for s, label in zip(sheets, _labels(sheets), strict=True)]
    return "% Needs \\usepackage{booktabs,graphicx}.\n" + "\n".join(tables)


def to_latex_notes(sheets: Sequence[Sheet]) -> str:
    r"""Write the notes on the tables, a paragraph for each, for `\input` where they belong."""
    return "\n".join(
        rf"\paragraph{{Table~\ref{{{label}}}.}} {_text(' '.join(sheet.notes[1:]))}" + "\n"
        for sheet, label in zip(sheets, _labels(sheets), strict=True)
    )


def _labels(sheets: Sequence[Sheet]) -> list[str]:
    """Return the label of each table, with a number where two would be the same."""
    labels: list[str] = []
    for sheet in sheets:
        name = unicodedata.normalize("NFKD", sheet.label or sheet.title).encode("ascii", "ignore")
        words = re.findall(r"[a-z0-9]+", name.decode().lower())
        label = "tab:" + ("-".join(words) or "runs")
        again = sum(other == label or other.startswith(f"{label}--") for other in labels)
        labels.append(f"{label}--{again + 1}" if again else label)
    return labels


def _table(sheet: Sheet, label: str) -> str:
    headers = [
        _header(_in_lines(header, width), side[0])
        for header, width, side in zip(sheet.headers, _widths(sheet), sheet.alignment, strict=True)
    ]
    rows = [
        # A hyphen is not a minus sign.
        [re.sub(r"(^|[\[{ ])-(?=\d)", r"\1$-$", cell) for cell in row]
        for row in sheet.written(escape_latex, r"\textbf{{{}}}".format).rows
    ]
    wide = _width(sheet, SMALL) > COLUMN
    small = _width(sheet, NORMAL) > (PAGE if wide else COLUMN)
    environment = "table*" if wide else "table"
    caption = _text(". ".join([sheet.title, *sheet.notes[:1]]).rstrip("."))
    columns = "".join(side[0] for side in sheet.alignment)
    lines = [
        rf"\begin{{{environment}}}",
        r"  \centering",
        rf"  \caption{{{caption}.}}",
        rf"  \label{{{label}}}",
        r"  \smallskip",
        *([r"  \footnotesize\setlength{\tabcolsep}{3pt}"] if small else []),
        # Its natural width, but at most the width of the text.
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        rf"    {' & '.join(headers)} \\",
        r"    \midrule",
        *(rf"    {' & '.join(row)} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        rf"\end{{{environment}}}",
    ]
    return "\n".join(lines) + "\n"


def _widths(sheet: Sheet) -> list[int]:
    """Return the width of each column's widest cell, in characters; headers do not count."""
    return [max((len(row[j]) for row in sheet.rows), default=0) for j in range(len(sheet.headers))]


def _header(lines: list[str], side: str) -> str:
    if lines == ["gamma"]:
        return r"$\gamma$"
    text = r" \\ ".join(escape_latex(line) for line in lines)
    return rf"\shortstack[{side}]{{{text}}}" if len(lines) > 1 else text


def _in_lines(header: str, width: int) -> list[str]:
    """Split a header that is wider than its column: `minus90 (test)`, or `trainer.scope`."""
    split = re.fullmatch(r"(.+) (.+)|(.+\.)([^.]+)", header)
    if len(header) <= width or not split:
        return [header]
    return [part for part in split.groups() if part]


def _width(sheet: Sheet, size: tuple[float, float]) -> float:
    """Estimate the width of a table, in points."""
    character, gap = size
    widest = [
        max(width, *map(len, _in_lines(header, width)))
        for header, width in zip(sheet.headers, _widths(sheet), strict=True)
    ]
    return character * sum(widest) + gap * len(widest)


def _text(text: str) -> str:
    return escape_latex(text).replace("/", r"/\allowbreak{}")  # long paths


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
    "†": r"$\dagger$",
    "–": "--",
}
