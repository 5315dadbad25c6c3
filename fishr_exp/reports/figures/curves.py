"""Draws accuracies over the steps, of the test domains and on validation parts."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.reports.figures.canvas import (
    COLORS,
    LINE_HEIGHT,
    ROW_HEIGHT,
    TEST_LINE,
    VALIDATION_LINE,
    add_legend,
    create_panels,
    draw_grid,
    draw_means,
    label_steps,
    save,
    styled,
)
from fishr_exp.reports.figures.gamma import row_label
from fishr_exp.reports.statistics.estimates import Estimate, estimate
from fishr_exp.reports.tables.table import Row, Table
from fishr_exp.runs.run_folder import RECORDS, Record, parse_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 2 * len(COLORS)  # of a table; a panel with more lines is unreadable

Points = Mapping[int, Estimate]  # by step


def over_steps(row: Row, of: Callable[[Record], float | None]) -> Points:
    """Average a value over a row's runs, at each step at which all of them recorded it.

    Args:
        row: Runs that differ only in their seed.
        of: Returns the value, a fraction, from a record, or None.

    Returns:
        Percentages by step.

    Raises:
        ValueError: If a record cannot be read.
        OSError: If the file cannot be read.
    """
    values: dict[int, list[float]] = {}
    for run in row.runs:
        for record in parse_records(run.path / RECORDS):
            value = of(record)
            if value is not None:
                values.setdefault(record["step"], []).append(100 * value)
    means = {step: estimate(found) for step, found in sorted(values.items())}
    return {step: e for step, e in means.items() if e is not None and e.n == len(row.runs)}


def of_test_domain(domain: str) -> Callable[[Record], float | None]:
    """Return a domain's accuracy on the validation part, which is always evaluated."""
    return lambda record: record.get("accuracy", {}).get(domain, {}).get("validation")


def of_validation(record: Record) -> float | None:
    """Return the mean validation accuracy of the training domains of a record."""
    return record.get("validation_accuracy")


def draw_curves(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Draw tables into `stem`.pdf and `stem`.png, one panel per test domain.

    Test accuracy is a line with a band of its standard error, validation accuracy a thin dashed
    one. A row with a single evaluation has no line, and a table with too many rows no panel.

    Returns:
        The files written; none if there is no line.

    Raises:
        ValueError: If a record cannot be read.
    """
    panels = {
        (f"{table.dataset}; test domain {domain}", table.title): lines
        for table in tables
        if len(table.rows) <= MOST_ROWS
        for domain in table.test_domains
        if (lines := _lines(table, domain))
    }
    if not panels:
        return []
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with styled():
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        handles, names = _legend(labels, 52 * columns)
        legend = sum(name.count("\n") + 1 for name in names)
        height = (ROW_HEIGHT + LINE_HEIGHT) * rows + LINE_HEIGHT * (legend + 1)
        figure, grid = create_panels(len(panels), columns, height=height)
        for axes, ((title, _), lines) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, lines, labels)
            axes.set_title(title)
        label_steps(grid, columns)
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy (%)")
        add_legend(figure, handles, names)
        return save(figure, stem)


def _lines(table: Table, domain: str) -> dict[str, tuple[Points, Points]]:
    """Return test and validation accuracies over the steps by row, of rows with two or more."""
    found = {}
    for row in table.rows:
        test, validation = over_steps(row, of_test_domain(domain)), over_steps(row, of_validation)
        if len(test) > 1:
            found[row_label(table, row)] = (test, validation)
    return found


def _draw_panel(
    axes: Axes, lines: Mapping[str, tuple[Points, Points]], labels: Sequence[str]
) -> None:
    draw_grid(axes)
    for label, (test, validation) in lines.items():
        style = _style(labels.index(label))
        draw_means(axes, list(test), list(test.values()), band=0.18, **TEST_LINE, **style)
        thin = {**style, **VALIDATION_LINE, "marker": ""}
        axes.plot(list(validation), [e.mean for e in validation.values()], **thin)


def _style(number: int) -> dict[str, Any]:
    marker = ("o", "s")[number // len(COLORS) % 2]
    return {"color": COLORS[number % len(COLORS)], "marker": marker, "markersize": 2.5}


def _legend(labels: Sequence[str], width: int) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **TEST_LINE, **_style(i)) for i in range(len(labels))]
    dashed = Line2D([], [], color="black", **VALIDATION_LINE)
    solid = Line2D([], [], color="black", **TEST_LINE)
    handles += [solid, dashed]
    names = [*labels, "validation part of the test domain", "of the training domains, mean"]
    return handles, [textwrap.fill(name, width) for name in names]
