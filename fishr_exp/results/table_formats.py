"""Writes tables as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from fishr_exp.results.statistics import Estimate
from fishr_exp.results.table import Row, Table


def to_text(tables: Sequence[Table]) -> str:
    """Write `tables` for a terminal."""
    parts = (
        "\n".join([table.title, "", _lay_out(_plain_grid(table), "simple"), "", *_notes(table)])
        for table in tables
    )
    return "\n\n".join(parts) + "\n"


def to_markdown(tables: Sequence[Table]) -> str:
    """Write `tables` in Markdown, as GitHub reads it."""
    parts = []
    for table in tables:
        grid = _plain_grid(table).map(escape_markdown)
        notes = [f"- {escape_markdown(note)}" for note in _notes(table)]
        parts.append(
            "\n".join(
                [f"### {escape_markdown(table.title)}", "", _lay_out(grid, "pipe"), "", *notes]
            )
        )
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    r"""Write `tables` for `\input` in a document that uses the package booktabs."""
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(_latex_table(t) for t in tables)


def to_csv(tables: Sequence[Table]) -> str:
    """Write all `tables` as one CSV, with mean, standard error and count in columns of their own.

    Accuracies are in percent, differences in points; what a table lacks is empty.
    """
    lines = [_csv_line(table, row) for table in tables for row in table.rows]
    identifying = [name for line in lines for name in line.identity]
    measured = [name for line in lines for name in line.measures]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(identifying + measured)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**line.identity, **line.measures} for line in lines)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def show_gammas(gammas: Sequence[float]) -> dict[float, str]:
    """Write each gamma as short as tells all of them apart (and with at least five digits)."""
    distinct = set(gammas)
    texts = {g: repr(g) for g in distinct}
    for digits in range(5, 17):
        short = {g: f"{g:.{digits}g}" for g in distinct}
        if len(set(short.values())) == len(distinct):
            texts = short
            break
    for gamma, text in texts.items():
        plain = "e" in text and gamma.is_integer() and gamma < 1e6  # 100000 beside 10000, not 1e5
        texts[gamma] = f"{gamma:.0f}" if plain else re.sub(r"e\+?(-?)0*", r"e\1", text)
    return texts


def escape_markdown(text: str) -> str:
    """Make `text` mean itself in a Markdown table."""
    return re.sub(r"([\\`*_<>\[\]|~&#$])", r"\\\1", text)


def escape_latex(text: str) -> str:
    """Make `text` mean itself in LaTeX, for pdflatex with its default fonts.

    A letter that those fonts lack is shown by its number: `[U+7D20]`.
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
    "–": "--",
}


@dataclass(frozen=True)
class _Grid:
    """A table's cells as strings; the first `left` columns hold words, the others numbers."""

    headers: list[str]
    rows: list[list[str]]
    left: int

    def map(self, change: Callable[[str], str]) -> _Grid:
        rows = [[change(cell) for cell in row] for row in self.rows]
        return _Grid([change(header) for header in self.headers], rows, self.left)


def _plain_grid(table: Table) -> _Grid:
    gammas = show_gammas([row.gamma for row in table.rows if row.gamma is not None])
    with_gamma = bool(gammas)
    with_difference = any(row.difference for row in table.rows)
    headers = [
        "method",
        *(["gamma"] if with_gamma else []),
        *table.setting_names,
        "seeds",
        "train",
        "validation",
        *(f"{domain} (test)" for domain in table.test_domains),
        *(["Δ ERM"] if with_difference else []),
    ]
    rows = []
    for row in table.rows:
        n = len(row.seeds)
        gamma = _ABSENT if row.gamma is None else gammas[row.gamma]
        rows.append(
            [
                row.method + ("*" if row.chosen_by_test_domain else ""),
                *([gamma] if with_gamma else []),
                *(row.settings[name] for name in table.setting_names),
                str(n),
                _show(row.train, n),
                _show(row.validation, n),
                *(_show(row.test[domain], n) for domain in table.test_domains),
                *([_show(row.difference, n, "+")] if with_difference else []),
            ]
        )
    left = 1 + with_gamma + len(table.setting_names)
    return _Grid(headers, rows, left).map(lambda cell: " ".join(cell.split()))


_ABSENT = "–"


def _show(estimate: Estimate | None, seeds: int, sign: str = "") -> str:
    """Write "mean ± standard error", and the count where it is not that of the seeds."""
    if estimate is None:
        return _ABSENT
    text = f"{round(estimate.mean, 1) + 0.0:{sign}.1f}"  # + 0.0: no "-0.0"
    if estimate.standard_error is not None:
        text += f" ± {estimate.standard_error:.1f}"
    return text if estimate.n == seeds else f"{text} (n={estimate.n})"


def _lay_out(grid: _Grid, style: str) -> str:
    alignment = ["left"] * grid.left + ["right"] * (len(grid.headers) - grid.left)
    return tabulate(
        grid.rows, grid.headers, tablefmt=style, colalign=alignment, disable_numparse=True
    )


def _notes(table: Table) -> list[str]:
    notes = [
        "Accuracy in %, mean ± standard error over seeds; one seed has no error.",
        "train, validation: mean over the training domains, on their two parts.",
    ]
    if any(row.difference for row in table.rows):
        notes.append(
            f"Δ ERM: difference to ERM in {table.test_domains[0]}, in points, paired by seed."
        )
    elif any(not row.is_baseline for row in table.rows):
        notes.append("No row of ERM has the same settings and seeds, so there is no Δ ERM.")
    if any(row.chosen_by_test_domain for row in table.rows):
        notes.append("*: checkpoint chosen by a test domain, so its accuracy is no fair estimate.")
    if table.repeats:
        folders = ", ".join(str(run.path) for run in table.repeats)
        notes.append(f"Not counted, since their row has the seed already: {folders}.")
    return notes


def _latex_table(table: Table) -> str:
    grid = _plain_grid(table).map(escape_latex)
    headers = [r"$\gamma$" if header == "gamma" else header for header in grid.headers]
    # A hyphen is no minus sign.
    rows = [[re.sub(r"^-(?=\d)", "$-$", cell) for cell in row] for row in grid.rows]
    caption = " ".join(escape_latex(text) for text in [f"{table.title}.", *_notes(table)])
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \begin{{tabular}}{{{'l' * grid.left}{'r' * (len(headers) - grid.left)}}}",
        r"    \toprule",
        rf"    {' & '.join(headers)} \\",
        r"    \midrule",
        *(rf"    {' & '.join(row)} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _CsvLine:
    identity: dict[str, str]
    measures: dict[str, str]


def _csv_line(table: Table, row: Row) -> _CsvLine:
    identity = {
        "dataset": table.dataset,
        "test_domains": " ".join(table.test_domains),
        "model": table.model or "",
        "method": row.method,
        "gamma": "" if row.gamma is None else repr(row.gamma),
        **row.settings,
        "seeds": " ".join(str(seed) for seed in row.seeds),
        "chosen_by_test_domain": str(row.chosen_by_test_domain).lower(),
    }
    estimates = {
        "train": row.train,
        "validation": row.validation,
        **{f"test_{domain}": estimate for domain, estimate in row.test.items()},
        "delta_erm": row.difference,
    }
    measures: dict[str, str] = {}
    for name, e in estimates.items():
        measures[f"{name}_mean"] = "" if e is None else f"{e.mean:.4f}"
        error = None if e is None else e.standard_error
        measures[f"{name}_se"] = "" if error is None else f"{error:.4f}"
        measures[f"{name}_n"] = "0" if e is None else str(e.n)
    return _CsvLine(identity, measures)
