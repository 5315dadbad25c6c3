"""Draws what `fishr-eval` found out: confusion matrices, and accuracy over confidence."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fishr_exp.reports.figures.canvas import (
    COLORS,
    COLUMN_WIDTH,
    LINE_HEIGHT,
    add_legend,
    create_panels,
    draw_grid,
    literal,
    save,
    set_title,
    styled,
)
from fishr_exp.runs.evaluated import Evaluated, EvaluatedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERS = 12  # classes; more numbers in the cells could not be read
MOST_NAMES = 40  # classes; more names at the axes could not be read
PANEL_HEIGHT = 2.7  # inches
_LONGEST = 16  # characters of the name of a class


def draw_confusion(run: EvaluatedRun, stem: Path) -> list[Path]:
    """Draw the confusion matrices into `stem`.pdf and `stem`.png, one panel per domain.

    A cell is colored by its share of the samples of its label.

    Returns:
        The files written.
    """
    with styled():
        panels, columns = run.unseen, _columns(run)
        height = PANEL_HEIGHT * -(-len(panels) // columns) + 2.5 * LINE_HEIGHT
        figure, grid = create_panels(len(panels), columns, height=height)
        for axes, of in zip(grid, panels, strict=True):
            axes.set_title(literal(of.title))
            _draw_matrix(axes, of, run.classes)
        for axes in grid[::columns]:
            axes.set_ylabel("label")
        for axes in grid[-columns:]:
            axes.set_xlabel("predicted")
            axes.tick_params(labelbottom=True)
        title = f"{run.title}: number of samples; color: share of the label"
        set_title(figure, textwrap.fill(literal(title), 58 * columns))
        return save(figure, stem)


def draw_reliability(run: EvaluatedRun, stem: Path) -> list[Path]:
    """Draw accuracy over confidence into `stem`.pdf and `stem`.png, one panel per domain.

    Returns:
        The files written.

    Source:
        Guo et al. 2017 (arXiv:1706.04599), figure 1.
    """
    with styled():
        panels, columns = run.unseen, _columns(run)
        height = PANEL_HEIGHT * -(-len(panels) // columns) + 4 * LINE_HEIGHT
        figure, grid = create_panels(len(panels), columns, height=height)
        for axes, of in zip(grid, panels, strict=True):
            error = 100 * of.calibration_error
            axes.set_title(literal(f"{of.title}: ECE {error:.1f} %, n = {of.samples}"))
            _draw_bins(axes, of)
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy (%), share of samples (%)")
        for axes in grid[-columns:]:
            axes.set_xlabel("confidence (%)")
            axes.tick_params(labelbottom=True)
        set_title(figure, textwrap.fill(literal(run.title), 58 * columns))
        handles, labels = grid[0].get_legend_handles_labels()
        add_legend(figure, handles, labels, 3)
        return save(figure, stem)


def _columns(run: EvaluatedRun) -> int:
    """Return the number of columns that leaves few places empty."""
    count = len(run.unseen)
    return count if count <= 3 else 2 if count == 4 else 3


def _draw_matrix(axes: Axes, of: Evaluated, classes: Sequence[str]) -> None:
    shares = [[cell / max(sum(row), 1) for cell in row] for row in of.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(classes) <= MOST_NUMBERS:
        for i, row in enumerate(of.confusion):
            for j, cell in enumerate(row):
                color = "white" if shares[i][j] > 0.55 else "black"
                axes.text(
                    j, i, str(cell), ha="center", va="center", color=color, fontsize=6.5,
                )  # fmt: skip
    if len(classes) <= MOST_NAMES:
        names = [literal(textwrap.shorten(name, _LONGEST, placeholder="…")) for name in classes]
        wide = max(map(len, names)) * len(names) > COLUMN_WIDTH * 10
        axes.set_xticks(range(len(names)), names, rotation=90 if wide else 0)
        axes.set_yticks(range(len(names)), names)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _draw_bins(axes: Axes, of: Evaluated) -> None:
    filled = [bin for bin in of.bins if bin.samples]
    lows, widths = [100 * bin.low for bin in filled], [100 * (b.high - b.low) for b in filled]
    accuracies = [100 * (bin.accuracy or 0.0) for bin in filled]
    shares = [100 * bin.samples / of.samples for bin in filled]
    style = {"align": "edge", "linewidth": 0.4, "edgecolor": "white"}
    draw_grid(axes)
    axes.bar(lows, accuracies, widths, color=COLORS[0], label="accuracy", **style)  # type: ignore[arg-type]
    centers = [low + width / 2 for low, width in zip(lows, widths, strict=True)]
    axes.plot(
        centers, shares, color=COLORS[1], marker="o", markersize=2.5, linewidth=1,
        label="share of samples",
    )  # fmt: skip
    axes.plot(
        [0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--",
        label="perfect calibration",
    )  # fmt: skip
    axes.set_xlim(100 * min((bin.low for bin in filled), default=0.0), 100)
    axes.set_ylim(0, 102)
