"""Draws the accuracy in the test domains over gamma, sized for a column of a paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.reports.figures.canvas import (
    COLORS,
    COLUMN_WIDTH,
    LINE_HEIGHT,
    MARKERS,
    TEST_LINE,
    VALIDATION_LINE,
    add_legend,
    create_panels,
    draw_grid,
    draw_means,
    literal,
    save,
    set_title,
    styled,
    wrap_title,
)
from fishr_exp.reports.metric import metric_name
from fishr_exp.reports.sheets.table_sheet import show_gammas
from fishr_exp.reports.statistics.estimates import Estimate
from fishr_exp.reports.statistics.gamma_selection import ORACLE, VALIDATION
from fishr_exp.reports.tables.grouping import ABSENT
from fishr_exp.reports.tables.table import Curve, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.3  # inches, without title and legend
MOST_LEVELS = 3  # horizontal lines, as many as can be distinguished
MOST_CURVES, MOST_POINTS = 12, 100  # of a figure; one with more is unreadable, and takes minutes


def varies_gamma(table: Table) -> bool:
    """Whether `table` has a curve over gamma: a method and setting with two or more gammas."""
    return bool(_sweeps(table))


def is_drawn(table: Table) -> bool:
    """Whether the figure of `table` would be readable."""
    curves = len(_sweeps(table))
    return curves <= MOST_CURVES if curves else len(table.rows) <= MOST_POINTS


def _sweeps(table: Table) -> list[Curve]:
    return [c for c in table.curves if sum(r.method == c.method for r in c.rows.values()) > 1]


def draw(table: Table, stem: Path, rename: Callable[[str], str] = str) -> list[Path]:
    """Draw `table` into `stem`.pdf and `stem`.png, one panel per test domain.

    Where gamma varies, test accuracy over gamma with the validation accuracy as a thin line, ERM
    as a horizontal one, and the gamma that each selection selects; otherwise one point for
    each row. Error bars and bands are standard errors over seeds. Names are written by `rename`.

    Returns:
        The files written.
    """
    domains = table.test_domains
    with styled():
        figure, panels = create_panels(len(domains), columns=len(domains))
        for axes, domain in zip(panels, domains, strict=True):
            if varies_gamma(table):
                _draw_over_gamma(axes, table, domain)
                panels[0].set_ylabel(f"{metric_name(table.metric)} (%)")
            else:
                _draw_points(axes, table, domain, rename)
        _finish(figure, panels, table, rename)
        return save(figure, stem)


def _label(of: Row | Curve) -> str:
    method = of.label if isinstance(of, Row) else of.method
    last = {name: name.rpartition(".")[2] for name in of.settings}
    short = {name: s if [*last.values()].count(s) == 1 else name for name, s in last.items()}
    known = {short[name]: value for name, value in of.settings.items() if value != ABSENT}
    values = ", ".join(f"{name}={value}" for name, value in known.items())
    return f"{method}, {values}" if values else method


def _draw_over_gamma(axes: Axes, table: Table, domain: str) -> None:
    curves = _sweeps(table)
    draw_grid(axes)
    place = _set_gamma_axis(axes, [gamma for curve in curves for gamma in curve.rows])
    for number, curve in enumerate(curves):
        again, place_of_color = divmod(number, len(COLORS))  # a color again has another marker
        color = COLORS[place_of_color]
        marker = MARKERS[(place_of_color + again) % len(MARKERS)]
        bold = {**TEST_LINE, "color": color, "marker": marker, "markersize": 3.5}
        thin = {**VALIDATION_LINE, "color": color}
        label = _label(curve)
        tested = {gamma: row.test[domain] for gamma, row in curve.rows.items()}
        validated = {gamma: row.validation for gamma, row in curve.rows.items()}
        _draw_curve(axes, place, tested, bold, f"{label}, test")
        _draw_curve(axes, place, validated, thin, f"{label}, validation")
        if domain == table.test_domains[0]:  # the domain that the oracle uses
            _mark_selections(axes, place, curve, tested)
    levels = _levels(table, curves)
    of_curves: dict[int, str] = {}
    for number, curve in enumerate(curves):  # a line of several curves has the color of none
        shared = id(curve.baseline) in of_curves
        of_curves[id(curve.baseline)] = "black" if shared else COLORS[number % len(COLORS)]
    several = sum(id(row) in of_curves for row in levels.values()) > 1
    for number, (label, row) in enumerate(levels.items()):
        color = of_curves.get(id(row), "black") if several else "black"
        style = {"label": label, "linestyle": (":", "-.", (0, (1, 3)))[number % 3]}
        _draw_level(axes, row.test[domain], {**style, "color": color})


def _levels(table: Table, curves: Sequence[Curve]) -> dict[str, Row]:
    """Return the rows drawn as horizontal lines: ERM, or gamma 0, and methods without a curve.

    If these are more than `MOST_LEVELS`, ERM alone is drawn.
    """
    erm = {f"{_label(row)}, test": row for row in table.rows if row.is_baseline}
    if not erm:
        # Of equal ones, one: the gamma 0 of several methods is the same run.
        zero = {tuple(c.baseline.test.values()): c.baseline for c in curves if c.baseline}
        alone = len(zero) == 1
        erm = {
            "ERM (γ = 0), test" if alone else f"{_label(row)}, γ=0, test": row
            for row in zero.values()
        }
    drawn = {id(row) for curve in curves for row in curve.rows.values()}
    drawn |= {id(row) for row in erm.values()}
    others = {f"{row_label(table, row)}, test": row for row in table.rows if id(row) not in drawn}
    return erm if len(erm) + len(others) > MOST_LEVELS else {**erm, **others}


def _draw_curve(
    axes: Axes,
    place: Callable[[float], float],
    estimates: Mapping[float, Estimate | None],
    style: dict[str, Any],
    label: str,
) -> None:
    """Draw means with a band of their standard errors; 0 is separate, beyond the axis break."""
    points = [(gamma, e) for gamma, e in estimates.items() if e is not None]
    known = [(gamma, e) for gamma, e in points if gamma > 0]
    apart = [(gamma, e) for gamma, e in points if gamma == 0]
    draw_means(
        axes,
        [place(gamma) for gamma, _ in known],
        [e for _, e in known],
        band=0.18 if "marker" in style else 0.09,
        label=label,
        **style,
    )
    for gamma, e in apart:
        axes.errorbar(
            [place(gamma)],
            [e.mean],
            yerr=[e.standard_error or 0.0],
            color=style["color"],
            marker=style.get("marker", "_"),
            markersize=style.get("markersize", 6),
            elinewidth=0.8,
            capsize=2 if "marker" in style else 0,
            zorder=style.get("zorder", 2),
        )


def _mark_selections(
    axes: Axes,
    place: Callable[[float], float],
    curve: Curve,
    tested: Mapping[float, Estimate | None],
) -> None:
    """Mark the test accuracy at the gamma of each selection."""
    shapes = {VALIDATION: ("o", 8.0), ORACLE: ("D", 8.5)}
    labels = {VALIDATION: "selected by validation", ORACLE: "selected by the oracle (sees test)"}
    for selected in curve.selections:
        estimate = tested[selected.gamma]
        if estimate is None:
            continue
        marker, size = shapes[selected.selection]
        axes.plot(
            [place(selected.gamma)],
            [estimate.mean],
            marker=marker,
            markersize=size,
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=0.9,
            linestyle="none",
            label=labels[selected.selection],
            clip_on=False,
            zorder=4,
        )


def _draw_level(axes: Axes, estimate: Estimate | None, style: Mapping[str, Any]) -> None:
    """Draw a mean as a horizontal line, its standard error as a band."""
    if estimate is None:
        return
    axes.axhline(estimate.mean, linewidth=1, zorder=1, **style)
    if error := estimate.standard_error:
        low, high = estimate.mean - error, estimate.mean + error
        axes.axhspan(low, high, color=style["color"], alpha=0.08, linewidth=0)


def _set_gamma_axis(axes: Axes, gammas: Sequence[float]) -> Callable[[float], float]:
    """Make the x axis logarithmic, with a position for 0 left of an axis break.

    Returns:
        A function from gamma to the position on the axis.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    positive = sorted({gamma for gamma in gammas if gamma > 0})
    low, high = positive[0], positive[-1]
    margin = max((high / low) ** 0.06, 1.2)
    zero = low / max((high / low) ** 0.18, 3.0)
    axes.set_xscale("log")
    axes.set_xlabel(r"weight of the penalty, $\gamma$")
    ticks = {gamma: _power_of_ten(gamma, text) for gamma, text in show_gammas(positive).items()}
    if len(ticks) > 7:  # more would overlap
        ticks = {g: ticks[g] for g in positive[:: -(-len(positive) // 7)]}
    if 0.0 in gammas:
        ticks[zero] = "0"
        axes.set_xlim(zero / margin, high * margin)
        _mark_break(axes, (zero * low) ** 0.5)
    else:
        axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.set_xticklabels([ticks[at] for at in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    return lambda gamma: gamma if gamma > 0 else zero


def _power_of_ten(gamma: float, text: str) -> str:
    """Write a large power of ten with an exponent; `text` is the default."""
    exponent = round(math.log10(gamma))
    return f"$10^{{{exponent}}}$" if abs(exponent) > 3 and gamma == 10.0**exponent else text


def _mark_break(axes: Axes, at: float) -> None:
    """Draw two strokes through the x axis: the part left of them is not to scale."""
    axes.plot(
        [at],
        [0],
        transform=axes.get_xaxis_transform(),
        marker="$//$",
        markersize=7,
        color="black",
        clip_on=False,
        linestyle="none",
        markerfacecolor="black",
        markeredgewidth=0,
        zorder=5,
    )


def _draw_points(axes: Axes, table: Table, domain: str, rename: Callable[[str], str]) -> None:
    """Draw a point for each row, for tables in which gamma does not vary."""
    _draw_series(axes, [row.validation for row in table.rows], "validation", COLORS[1], "s", 2.5)
    _draw_series(axes, [row.test[domain] for row in table.rows], "test", COLORS[0], "o", 4)
    labels = _point_labels(table, rename)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first row on top, as in the table
    axes.set_xlabel(f"{metric_name(table.metric)} (%)")
    draw_grid(axes, "x")
    baselines = [row.test[domain] for row in table.rows if row.is_baseline]
    if len(table.rows) > 2 and len(baselines) == 1 and baselines[0]:
        style: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":", "zorder": 1}
        axes.axvline(baselines[0].mean, label="ERM, test", **style)


def _point_labels(table: Table, rename: Callable[[str], str]) -> list[str]:
    labels = [literal(rename(row_label(table, row))) for row in table.rows]
    return [textwrap.fill(of, 26, break_long_words=False, break_on_hyphens=False) for of in labels]


def row_label(table: Table, row: Row) -> str:
    """Label a row by its method, the settings that vary in the table, and its gamma."""
    if not row.gamma:  # gamma 0 has its own name
        return _label(row)
    gammas = show_gammas([r.gamma for r in table.rows if r.gamma is not None])
    return f"{_label(row)}, γ={gammas[row.gamma]}"


def _draw_series(
    axes: Axes,
    estimates: Sequence[Estimate | None],
    label: str,
    color: str,
    marker: str,
    size: float,
) -> None:
    points = [(place, e) for place, e in enumerate(estimates) if e is not None]
    if points:
        axes.errorbar(
            [e.mean for _, e in points],
            [place for place, _ in points],
            xerr=[e.standard_error or 0.0 for _, e in points],
            color=color,
            marker=marker,
            markersize=size,
            capsize=2.5,
            linestyle="none",
            label=label,
        )


def _finish(
    figure: Figure, panels: Sequence[Axes], table: Table, rename: Callable[[str], str]
) -> None:
    """Add titles, and a legend below all panels, where it covers nothing; set the size."""
    for axes, domain in zip(panels, table.test_domains, strict=True):
        if len(panels) > 1:
            axes.set_title(literal(rename(f"test domain {domain}")))
    name = literal(rename(table.title))
    wrapped = wrap_title(name, 54 * len(panels))
    title = f"{wrapped}\n{about_seeds(table.rows)}"
    set_title(figure, title)
    handles, labels = panels[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # curves share the labels of their marks
    labels = sorted(once, key=lambda label: label.startswith("selected"))
    handles = [once[label] for label in labels]
    labels = [literal(rename(label)) for label in labels]
    half = -(-len(labels) // 2)
    widest = sum(max(map(len, part), default=0) for part in (labels[:half], labels[half:]))
    columns = (2 if widest <= 52 else 1) * len(panels)  # as many as fit next to each other
    add_legend(figure, handles, labels, columns, marker_scale=0.8)
    lines = title.count("\n") + 1 - (-len(labels) // columns)
    height = PANEL_HEIGHT + LINE_HEIGHT * lines
    if not varies_gamma(table):
        texts = _point_labels(table, rename)  # at equal distances
        rows = len(texts) * max(text.count("\n") + 1.5 for text in texts)
        height = max(height, LINE_HEIGHT * (rows + lines + 3))
    figure.set_size_inches(COLUMN_WIDTH * len(panels), height)


def about_seeds(rows: Iterable[Row]) -> str:
    """Say how many seeds the rows have, and what bars and bands show."""
    counts = sorted({len(row.seeds) for row in rows})
    if counts == [1]:
        return "1 seed"
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{seeds} seeds; bars and bands: standard error"
