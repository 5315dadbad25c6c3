"""Puts a protocol's table on a sheet, and the runs behind its cells on another."""

from __future__ import annotations

import os

from fishr_exp.reports.published import Published
from fishr_exp.reports.sheets.sheet import MISSING, Line, Sheet
from fishr_exp.reports.sheets.table_sheet import show_estimate
from fishr_exp.reports.tables.comparison import Cell, Comparison, ComparisonRow, Trace
from fishr_exp.reports.tables.grouping import ABSENT

MARKS = {"within": "≈", "higher": "↑", "lower": "↓", "not published": "∘", "departs": ""}
_MEANINGS = {
    "within": "within the published error",
    "higher": "higher",
    "lower": "lower",
    "not published": "not published",
}


def comparison_sheet(table: Comparison) -> Sheet:
    """Put `table` on a sheet; its CSV has a line for each cell."""
    rows = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            cell = row.cells[column]
            if row.published_only:
                cells.append(_show_published(cell.published))
            else:
                cells.append(_show_own(cell, row.repeats))
                cells += [_show_published(cell.published)] if table.separate_columns else []
        method = f"{row.method} ({row.origin})" if row.origin else row.method
        rows.append([method, ABSENT if row.published_only else str(row.repeats), *cells])
    columns = [  # key and header
        pair
        for column in table.columns
        for pair in (
            [(column, column), (f"published {column}", "published")]
            if table.separate_columns
            else [(column, column)]
        )
    ]
    lines = [_line(table, row, column) for row in table.rows for column in table.columns]
    return Sheet(
        title=table.title,
        headers=["method", table.repeated, *(header for _, header in columns)],
        rows=rows,
        left=1,
        notes=[*table.notes, *_legend(table), *_sources(table)],
        lines=lines,
        label=" ".join(filter(None, [table.protocol, table.name, table.selection])),
        keys=["method", table.repeated, *(key for key, _ in columns)],
        compared=frozenset(
            place
            for place, (_, header) in enumerate(columns, start=2)
            if header not in ("train", "published")
        ),
    )


def cells_sheet(table: Comparison) -> Sheet:
    """List the runs behind every cell of `table`."""
    traces = [
        (row.method, column, trace)
        for row in table.rows
        for column in table.columns
        for trace in row.cells[column].traces
    ]
    parents = [str(trace.run.parent) for _, _, trace in traces]
    root = os.path.commonpath(parents or ["."]) or "."
    rows = [_trace_row(*found, root) for found in traces]
    # Columns about selection are empty for a protocol without selection.
    headers = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    notes = ["A cell is the mean over its lines; averages are computed from the cells."]
    if root != ".":
        notes.append(f"The runs are in {root}.")
    if "candidates" in headers:
        notes.append("hparams_seed: the candidate with the highest value.")
    return Sheet(
        title=f"Runs behind: {table.title}",
        headers=headers,
        rows=[[row[name] for name in headers] for row in rows],
        left=2,
        notes=notes,
        last=len({"run", "pairs"} & {*headers}),
        lines=[_trace_line(table, *found) for found in traces],
    )


def _show_own(cell: Cell, repeats: int) -> str:
    shown = show_estimate(cell.own, repeats, absent=MISSING)
    return f"{shown} {MARKS[cell.verdict]}" if cell.verdict else shown


def _show_published(figure: Published | None) -> str:
    if figure is None:
        return ABSENT
    return (
        f"{figure.mean:.1f}" if figure.error is None else f"{figure.mean:.1f} ± {figure.error:.1f}"
    )


def _cells(table: Comparison) -> list[Cell]:
    return [row.cells[column] for row in table.rows for column in table.columns]


def _legend(table: Comparison) -> list[str]:
    ours = [row for row in table.rows if not row.published_only]
    verdicts = {row.cells[column].verdict for row in ours for column in table.columns}
    legend = [f"{MARKS[v]} {text}" for v, text in _MEANINGS.items() if v in verdicts]
    lines = []
    if verdicts & {"within", "higher", "lower"}:
        legend[-1] += "; figures are compared as printed"
    if legend:
        lines.append(f"Against the published figure: {', '.join(legend)}.")
    if None in verdicts:
        lines.append(f"{MISSING}: missing, since a required run or accuracy is missing.")
    return lines


def _sources(table: Comparison) -> list[str]:
    sources = dict.fromkeys(cell.published.source for cell in _cells(table) if cell.published)
    return [f"Published: {'; '.join(sources)}."] if sources else []


def _line(table: Comparison, row: ComparisonRow, column: str) -> Line:
    cell = row.cells[column]
    own, published = cell.own, cell.published
    identity = {
        "protocol": table.protocol,
        "selection": table.selection or "",
        "table": table.name,
        "method": row.method,
        "column": column,
    }
    measures = {
        "mean": "" if own is None else f"{own.mean:.4f}",
        "error": "" if own is None else _number(own.standard_error),
        "n": "0" if own is None else str(own.n),
        "published": "" if published is None else f"{published.mean:.1f}",
        "published_error": ""
        if published is None or published.error is None
        else f"{published.error:.1f}",
        "verdict": "" if row.published_only else cell.verdict or "missing",
        "source": "" if published is None else published.source,
        "conditions": "" if published is None else published.conditions,
    }
    return Line(identity, measures)


def _trace_line(table: Comparison, method: str, column: str, trace: Trace) -> Line:
    identity = {
        "protocol": table.protocol,
        "selection": table.selection or "",
        "table": table.name,
        "method": method,
        "column": column,
        "trial": str(trace.trial),
    }
    measures = {
        "hparams_seed": _integer(trace.hparams_seed),
        "candidates": _integer(trace.candidates),
        "step": _integer(trace.step),
        "value": _number(trace.value),
        "accuracy": _number(trace.accuracy),
        "run": str(trace.run),
        "pairs": " ".join(str(path) for path in trace.pairs),
    }
    return Line(identity, measures)


def _trace_row(method: str, column: str, trace: Trace, root: str) -> dict[str, str]:
    selected = trace.step is not None
    return {
        "method": method,
        "cell": column,
        "trial" if selected else "seed": str(trace.trial),
        "accuracy": f"{trace.accuracy:.1f}",
        "hparams_seed": _integer(trace.hparams_seed),
        "candidates": _integer(trace.candidates),
        "step": _integer(trace.step),
        "value": "" if trace.value is None else f"{trace.value:.1f}",
        "run": str(trace.run.relative_to(root)),
        "pairs": " ".join(path.name for path in trace.pairs),
    }


def _integer(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
