"""Draws the diagnostics of one run over its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.reports.figures.canvas import (
    COLORS,
    ROW_HEIGHT,
    create_panels,
    draw_grid,
    label_steps,
    literal,
    save,
    set_title,
    styled,
)
from fishr_exp.runs.run_folder import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORM, DISTANCE, SHARE, COSINE = (
    "variance_norm",
    "variance_distance",
    "penalty_share",
    "gradient_cosine",
)
NORM_ALL, DISTANCE_ALL = f"{NORM}_all", f"{DISTANCE}_all"
PANELS = {
    NORM: "norm of the gradient variance",
    DISTANCE: "distance of gradient variances",
    NORM_ALL: "norm of the gradient variance, all parameters",
    DISTANCE_ALL: "distance of gradient variances, all parameters",
    SHARE: "share of the penalty in the objective",
    COSINE: "cosine of risk's and penalty's gradient",
}
COLUMNS = 2
TITLE_HEIGHT = 0.3  # inches
LARGEST = 1e100  # matplotlib cannot draw the largest numbers, nor infinity


def series(records: Sequence[Record]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Group the recorded values by panel and line, each a list of (step, value)."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        for key, value in (record.get("diagnostics") or {}).items():
            panel, _, line = key.partition("/")
            if value is not None:
                point = (record["step"], float(value))
                found.setdefault(panel, {}).setdefault(line.replace("/", " – "), []).append(point)
    return found


def draw_diagnostics(
    records: Sequence[Record], title: str, anneal_steps: int, stem: Path
) -> list[Path]:
    """Draw the diagnostics among `records` into `stem`.pdf and `stem`.png.

    Args:
        records: The records of one run.
        title: The title, a description of the run.
        anneal_steps: Step at which the penalty switches on; 0: from the start.
        stem: Path of the files without suffix.

    Returns:
        The files written.

    Raises:
        ValueError: If no record has diagnostics.
    """
    found = series(records)
    panels = [panel for panel in PANELS if panel in found]
    if not panels:
        raise ValueError("no record has diagnostics")
    with styled():
        height = ROW_HEIGHT * -(-len(panels) // COLUMNS) + TITLE_HEIGHT
        figure, grid = create_panels(len(panels), COLUMNS, share_y=False, height=height)
        for axes, panel in zip(grid, panels, strict=True):
            _draw_panel(axes, panel, found[panel], anneal_steps)
        label_steps(grid, COLUMNS)
        set_title(figure, literal(title))
        return save(figure, stem)


def _can_be_drawn(value: float) -> bool:
    return abs(value) < LARGEST


def _draw_panel(
    axes: Axes, panel: str, lines: Mapping[str, Sequence[tuple[int, float]]], anneal_steps: int
) -> None:
    axes.set_title(PANELS[panel])
    draw_grid(axes)
    for number, (name, points) in enumerate(lines.items()):
        marker: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(points) < 30 else {}
        axes.plot(
            [step for step, _ in points],
            [value if _can_be_drawn(value) else math.nan for _, value in points],
            color=COLORS[number % len(COLORS)],
            linestyle=("-", "--", ":")[number // len(COLORS) % 3],
            linewidth=1.1,
            label=literal(name),
            **marker,
        )
    values = [v for points in lines.values() for _, v in points if _can_be_drawn(v)]
    if (
        panel not in (SHARE, COSINE)
        and min(values, default=0) > 0
        and max(values) > 20 * min(values)
    ):
        axes.set_yscale("log")
    if panel == SHARE:
        axes.set_ylim(min([0.0, *values]) - 0.03, max([1.0, *values]) + 0.03)
    if panel == COSINE:
        axes.set_ylim(-1.06, 1.06)
        axes.axhline(0, color="black", linewidth=0.6, zorder=1)
    if anneal_steps:
        label_of_line = "the penalty switches on" if panel == SHARE else None
        axes.axvline(
            anneal_steps, color="black", linestyle=":", linewidth=0.8, zorder=1, label=label_of_line
        )
    if len(lines) > 1 or (anneal_steps and panel == SHARE):
        axes.legend(frameon=False, ncols=1 + (len(lines) > 6))
