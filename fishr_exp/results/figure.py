"""Draws the accuracy in the test domains over gamma, for a paper's column."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.results.statistics import Estimate
from fishr_exp.results.table import Row, Table
from fishr_exp.results.table_formats import show_gammas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.4  # inches, of a two-column paper; one panel is as wide
PANEL_HEIGHT = 2.3  # inches, without title and legend
LINE_HEIGHT = 0.145  # inches, of a line in the legend
# Okabe and Ito's colours, which differ for the colour-blind too; black is ERM's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


def varies_gamma(table: Table) -> bool:
    """Whether `table` has a curve over gamma: one method and setting with two values of it."""
    return any(len(curve.rows) > 1 for curve in _curves(table))


def draw(table: Table, stem: Path) -> list[Path]:
    """Draw `table` into `stem`.pdf and `stem`.png, one panel a test domain.

    Where gamma varies, test accuracy over gamma with the validation accuracy as a thin line and
    ERM as a horizontal one; otherwise one point for each row. Error bars and bands are standard
    errors over seeds.

    Returns:
        The files written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = table.test_domains
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
        for axes, domain in zip(panels, domains, strict=True):
            if varies_gamma(table):
                _draw_over_gamma(axes, table, domain)
                panels[0].set_ylabel("accuracy (%)")
            else:
                _draw_points(axes, table, domain)
        _finish(figure, panels, table)
        files = [stem.with_name(f"{stem.name}.pdf"), stem.with_name(f"{stem.name}.png")]
        # Without the date, the same runs give the same file.
        figure.savefig(files[0], metadata={"CreationDate": None})
        figure.savefig(files[1], dpi=300)
    return files


@dataclass(frozen=True)
class _Curve:
    """The rows of one method with one choice of settings, by ascending gamma."""

    label: str
    rows: list[Row]


def _curves(table: Table) -> list[_Curve]:
    curves: dict[str, _Curve] = {}
    for row in table.rows:
        if row.gamma is not None and not row.is_baseline:
            label = _label(row)
            curves.setdefault(label, _Curve(label, [])).rows.append(row)
    return list(curves.values())


def _label(row: Row) -> str:
    method = "ERM" if row.is_baseline else row.method
    values = ", ".join(f"{name}={value}" for name, value in row.settings.items())
    return _literal(f"{method}, {values}" if values else method)


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # else two of them are read as mathematics


def _draw_over_gamma(axes: Axes, table: Table, domain: str) -> None:
    curves = _curves(table)
    axes.grid(axis="y", linewidth=0.4, alpha=0.4)
    place = _set_gamma_axis(axes, [row.gamma or 0.0 for c in curves for row in c.rows])
    for number, curve in enumerate(curves):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        x = [place(row.gamma or 0.0) for row in curve.rows]
        _draw_curve(
            axes,
            x,
            [row.test[domain] for row in curve.rows],
            {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.2},
            f"{curve.label}, test",
        )
        _draw_curve(
            axes,
            x,
            [row.validation for row in curve.rows],
            {"color": colour, "linewidth": 0.7, "alpha": 0.8, "elinewidth": 0.7, "zorder": 1.5},
            f"{curve.label}, validation",
        )
    for number, row in enumerate(row for row in table.rows if row.gamma is None):
        _draw_level(axes, row, row.test[domain], ("--", ":", "-.")[number % 3])


def _draw_curve(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate | None],
    style: dict[str, Any],
    label: str,
) -> None:
    points = [(at, e) for at, e in zip(x, estimates, strict=True) if e is not None]
    if points:
        axes.errorbar(
            [at for at, _ in points],
            [e.mean for _, e in points],
            yerr=[e.standard_error or 0.0 for _, e in points],
            capsize=2.5,
            label=label,
            **style,
        )


def _draw_level(axes: Axes, row: Row, estimate: Estimate | None, dashes: str) -> None:
    """Draw a row without gamma as a horizontal line, its standard error as a band."""
    if estimate is None:
        return
    label = f"{_label(row)}, test"
    axes.axhline(estimate.mean, color="black", linestyle=dashes, linewidth=1, label=label, zorder=1)
    if error := estimate.standard_error:
        axes.axhspan(
            estimate.mean - error, estimate.mean + error, color="black", alpha=0.12, linewidth=0
        )


def _set_gamma_axis(axes: Axes, gammas: Sequence[float]) -> Callable[[float], float]:
    """Make the x axis logarithmic, with a place for 0 left of a break in the axis.

    Returns:
        The place of each gamma on the axis.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    positive = sorted({gamma for gamma in gammas if gamma > 0})
    low, high = positive[0], positive[-1]
    margin = max((high / low) ** 0.06, 1.2)
    zero = low / max((high / low) ** 0.18, 3.0)
    axes.set_xscale("log")
    axes.set_xlabel(r"weight of the penalty, $\gamma$")
    ticks = show_gammas(positive)
    if len(ticks) > 7:  # more would run into each other
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


def _mark_break(axes: Axes, at: float) -> None:
    """Draw two strokes through the x axis: what lies left of them is not to scale."""
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


def _draw_points(axes: Axes, table: Table, domain: str) -> None:
    """Draw a point for each row, for tables in which gamma does not vary."""
    _draw_series(axes, [row.validation for row in table.rows], "validation", COLOURS[1], "s", 2.5)
    _draw_series(axes, [row.test[domain] for row in table.rows], "test", COLOURS[0], "o", 4)
    labels = _point_labels(table)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first row on top, as in the table
    axes.set_xlabel("accuracy (%)")
    axes.grid(axis="x", linewidth=0.4, alpha=0.4)


def _point_labels(table: Table) -> list[str]:
    gammas = show_gammas([row.gamma for row in table.rows if row.gamma is not None])
    labels = [
        _label(row) if row.gamma is None else f"{_label(row)}, γ={gammas[row.gamma]}"
        for row in table.rows
    ]
    return [textwrap.fill(label, 24) for label in labels]


def _draw_series(
    axes: Axes,
    estimates: Sequence[Estimate | None],
    label: str,
    colour: str,
    marker: str,
    size: float,
) -> None:
    points = [(place, e) for place, e in enumerate(estimates) if e is not None]
    if points:
        axes.errorbar(
            [e.mean for _, e in points],
            [place for place, _ in points],
            xerr=[e.standard_error or 0.0 for _, e in points],
            color=colour,
            marker=marker,
            markersize=size,
            capsize=2.5,
            linestyle="none",
            label=label,
        )


def _finish(figure: Figure, panels: Sequence[Axes], table: Table) -> None:
    """Add titles, and a legend below all panels, where it can hide nothing; set the size."""
    from matplotlib.lines import Line2D

    for axes, domain in zip(panels, table.test_domains, strict=True):
        if len(panels) > 1:
            axes.set_title(_literal(f"test domain {domain}"))
    title = _literal(textwrap.fill(table.title, 58 * len(panels))) + "\n" + _about_seeds(table)
    figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: isinstance(handles[i], Line2D))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]  # ERM's line last
    columns = 2 * len(panels) if max(map(len, labels), default=0) < 24 else len(panels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    lines = title.count("\n") + 1 - (-len(labels) // columns)
    height = PANEL_HEIGHT + LINE_HEIGHT * lines
    if not varies_gamma(table):
        rows = sum(label.count("\n") + 1.5 for label in _point_labels(table))
        height = max(height, LINE_HEIGHT * (rows + lines + 1))
    figure.set_size_inches(COLUMN_WIDTH * len(panels), height)


def _about_seeds(table: Table) -> str:
    counts = sorted({len(row.seeds) for row in table.rows})
    if counts == [1]:
        return "1 seed"
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{seeds} seeds; bars and bands: standard error"
