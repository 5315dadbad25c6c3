"""Draws accuracies over the steps, in the test domains and in the training domains."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.reports.figures.canvas import (
    COLORS,
    ERM_COLOR,
    LINE_HEIGHT,
    MARKERS,
    ROW_HEIGHT,
    TEST_LINE,
    add_legend,
    create_panels,
    draw_grid,
    draw_means,
    label_steps,
    literal,
    save,
    sequential_colors,
    set_title,
    styled,
)
from fishr_exp.reports.figures.gamma import about_seeds, row_label
from fishr_exp.reports.metric import metric_name
from fishr_exp.reports.statistics.estimates import Estimate, estimate
from fishr_exp.reports.tables.table import Row, Table
from fishr_exp.runs.reading import ACCURACY
from fishr_exp.runs.records import parse_evaluations
from fishr_exp.runs.run_folder import RECORDS, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 12  # of a table; a panel with more lines is unreadable
LEGEND_WIDTH, HANDLE_WIDTH = 110, 7  # characters, of the legend and beside a name

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
    """
    values: dict[int, list[float]] = {}
    for run in row.runs:
        for record in parse_evaluations(run.path / RECORDS):
            value = of(record)
            if value is not None:
                values.setdefault(record["step"], []).append(100 * value)
    means = {step: estimate(found) for step, found in sorted(values.items())}
    return {step: e for step, e in means.items() if e is not None and e.n == len(row.runs)}


def of_test_domain(domain: str, metric: str = ACCURACY) -> Callable[[Record], float | None]:
    """Return a domain's accuracy on the validation part, which is always evaluated."""
    return lambda record: record.get(metric, {}).get(domain, {}).get("validation")


def of_validation(metric: str = ACCURACY) -> Callable[[Record], float | None]:
    """Return the mean validation accuracy of the training domains of a record."""
    return lambda record: record.get(f"validation_{metric}")


@dataclass(frozen=True)
class _Line:
    """A row of a table, as it is drawn."""

    label: str
    family: tuple[str, ...]  # method and settings: rows that differ only in gamma
    gamma: float | None
    is_erm: bool
    test: Mapping[str, Points]  # by test domain
    validation: Points


_Panel = tuple[str, Mapping[str, Points]]  # its title, and lines by label


def draw_curves(
    tables: Sequence[Table],
    stem: Path,
    rename: Callable[[str], str] = str,
    everything: bool = False,
) -> list[Path]:
    """Draw tables into `stem`.pdf and `stem`.png, in two columns of panels.

    A table has a panel for the accuracy in each test domain, and one for the validation accuracy of
    the training domains. Lines have a band of their standard error. The colors of a method are
    ordered like its gammas; ERM is black. A row with a single evaluation has no line, and a table
    with more than `MOST_ROWS` rows no panels, unless `everything` is asked for. Names are written
    by `rename`.

    Returns:
        The files written; none if there is no line.

    Raises:
        ValueError: If a record cannot be read.
    """
    shown = [table for table in tables if everything or len(table.rows) <= MOST_ROWS]
    found = [(table, _lines(table)) for table in shown]
    found = [(table, lines) for table, lines in found if lines]
    if not found:
        return []
    name = metric_name(tables[0].metric)
    styles = _styles(line for _, lines in found for line in lines)
    datasets = list(dict.fromkeys(table.dataset for table, _ in found))
    panels: list[_Panel | None] = []
    for table, lines in found:
        own = _panels(table, lines, len(datasets) > 1, len(found) > 1)
        panels += [*own, *([None] * (len(own) % 2))]  # the next table starts in the first column
    with styled():
        names = [literal(rename(label)) for label in styles]
        columns = max(1, min(len(names), LEGEND_WIDTH // (max(map(len, names)) + HANDLE_WIDTH)))
        names = [textwrap.fill(name, LEGEND_WIDTH) for name in names]
        legend = -(-len(names) // columns) + sum(name.count("\n") for name in names)
        height = (ROW_HEIGHT + LINE_HEIGHT) * len(panels) / 2 + LINE_HEIGHT * (legend + 3)
        figure, grid = create_panels(len(panels), 2, height=height)
        for axes, panel in zip(grid, panels, strict=True):
            if panel is None:
                axes.set_visible(False)
                continue
            axes.set_title(literal(rename(panel[0])))
            _draw_panel(axes, panel[1], styles)
        for axes in grid[::2]:
            axes.set_ylabel(f"{name} (%)")
        label_steps(grid, 2)
        seeds = about_seeds(row for table, _ in found for row in table.rows)
        title = "; ".join([*datasets[: len(datasets) == 1], f"{name} on validation parts", seeds])
        set_title(figure, literal(rename(title)))
        add_legend(figure, _handles(styles), names, columns)
        return save(figure, stem)


def _lines(table: Table) -> list[_Line]:
    """Return the rows that have two or more evaluations."""
    found = []
    for row in table.rows:
        test = {
            domain: over_steps(row, of_test_domain(domain, table.metric))
            for domain in table.test_domains
        }
        if any(len(points) > 1 for points in test.values()):
            family = (row.method, *(f"{key}={value}" for key, value in row.settings.items()))
            is_erm = row.is_baseline or row.gamma == 0
            validation = over_steps(row, of_validation(table.metric))
            found.append(_Line(row_label(table, row), family, row.gamma, is_erm, test, validation))
    return found


def _panels(
    table: Table, lines: Sequence[_Line], names_dataset: bool, names_domains: bool
) -> list[_Panel]:
    of = f"{table.dataset}: " if names_dataset else ""
    without = f" without {', '.join(table.test_domains)}" if names_domains else ""
    return [
        *(
            (f"{of}test domain {domain}", {line.label: line.test[domain] for line in lines})
            for domain in table.test_domains
        ),
        (f"{of}training domains{without}", {line.label: line.validation for line in lines}),
    ]


def _draw_panel(
    axes: Axes, lines: Mapping[str, Points], styles: Mapping[str, dict[str, Any]]
) -> None:
    draw_grid(axes)
    for label, points in lines.items():
        style = {**TEST_LINE, **styles[label]}
        draw_means(axes, list(points), list(points.values()), band=0.15, **style)


def _styles(lines: Iterable[_Line]) -> dict[str, dict[str, Any]]:
    """Return color and marker by label.

    Gammas of one family have colors in their order, from a scale of the family's own. A family with
    one gamma has a color that is on no scale.
    """
    by_label = {line.label: line for line in lines}
    families: dict[tuple[str, ...], list[float]] = {}
    for line in by_label.values():
        if not line.is_erm:
            families.setdefault(line.family, []).append(line.gamma or 0.0)
    scales = [family for family, gammas in families.items() if len({*gammas}) > 1]
    single = [family for family in families if family not in scales]
    styles = {}
    erm = 0
    for label, line in by_label.items():
        if line.is_erm:
            color, marker = ERM_COLOR, MARKERS[erm % len(MARKERS)]
            erm += 1
        elif line.family in scales:
            gammas = sorted({*families[line.family]})
            place, scale = gammas.index(line.gamma or 0.0), scales.index(line.family)
            color = sequential_colors(scale, len(gammas))[place]
            marker = MARKERS[place % len(MARKERS)]
        else:
            number = single.index(line.family)
            color, marker = (
                COLORS[number % len(COLORS)],
                MARKERS[(number // len(COLORS) + 1) % len(MARKERS)],
            )
        styles[label] = {"color": color, "marker": marker, "markersize": 2.8}
    return styles


def _handles(styles: Mapping[str, dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **{**TEST_LINE, **style}) for style in styles.values()]
