"""Common parts of all figures: sizes, colors, style, panels, the legend below them, and saving."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fishr_exp.reports.sheets.sheet import on_one_line
from fishr_exp.reports.statistics.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.4  # inches, of a column in a two-column paper; one panel is as wide
ROW_HEIGHT = 1.9  # inches, of a row of panels in a grid
LINE_HEIGHT = 0.145  # inches, of a line of text in a title or legend
DPI = 300  # of the PNG
MOST_PIXELS = 2**15  # on a side of an image
# The palette of Okabe and Ito, which color-blind readers can distinguish; black is for ERM.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ERM_COLOR = "black"
# Scales for values in an order, from light to dark, each with the part that is dark enough.
SCALES = (("viridis_r", 0.12, 1.0), ("YlOrRd", 0.4, 1.0), ("PuRd", 0.4, 1.0), ("YlGn", 0.45, 1.0))
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
TEST_LINE: dict[str, Any] = {"linewidth": 1.3}
VALIDATION_LINE: dict[str, Any] = {"linewidth": 0.8, "linestyle": (0, (4, 1.5)), "zorder": 1.5}


@contextmanager
def styled() -> Iterator[None]:
    """Apply `STYLE` to all that is drawn and saved inside the block."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def sequential_colors(scale: int, count: int) -> list[Any]:
    """Return `count` colors in an order, from light to dark; each scale (by number) has its own."""
    from matplotlib import colormaps

    name, low, high = SCALES[scale % len(SCALES)]
    steps = [low + (high - low) * place / max(count - 1, 1) for place in range(count)]
    return [colormaps[name](step) for step in steps]


def create_panels(
    count: int, columns: int, *, share_y: bool = True, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """Create a figure with `count` panels, filled in row by row, that share their x axis.

    Args:
        count: Number of panels, at least 1.
        columns: Number of columns; each is `COLUMN_WIDTH` wide.
        share_y: Whether the panels share their y axis too.
        height: Of the figure, in inches; None if the caller sets the size later.

    Returns:
        The figure and its visible panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = None if height is None else (COLUMN_WIDTH * columns, height)
    figure = Figure(layout="constrained", figsize=size)
    FigureCanvasAgg(figure)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def label_steps(panels: Sequence[Axes], columns: int) -> None:
    """Label the x axis of the lowest panel of each column, which is shared by those above."""
    from matplotlib.ticker import MaxNLocator

    for column in range(columns):
        visible = [axes for axes in panels[column::columns] if axes.get_visible()]
        for axes in visible[-1:]:
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def draw_grid(axes: Axes, axis: str = "y") -> None:
    """Draw faint lines across the panel, at the ticks of `axis` (`x` or `y`)."""
    axes.grid(axis=axis, linewidth=0.4, alpha=0.4)  # type: ignore[arg-type]


def draw_means(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    band: float,
    **style: Any,
) -> None:
    """Draw a line through means, with a band of their standard errors.

    Args:
        axes: The panel.
        x: Positions of the estimates.
        estimates: As many as `x`; without a standard error, the band has no width there.
        band: Opacity of the band, in [0, 1].
        **style: Style of the line, including `color`.
    """
    means = [e.mean for e in estimates]
    errors = [e.standard_error or 0.0 for e in estimates]
    axes.plot(x, means, **style)
    low, high = ([m + s * e for m, e in zip(means, errors, strict=True)] for s in (-1, 1))
    axes.fill_between(x, low, high, color=style["color"], alpha=band, linewidth=0)


def wrap_title(title: str, width: int) -> str:
    """Break a title into lines of at most `width` characters, at its semicolons where it can be."""
    lines = [""]
    *first, last = title.split("; ")
    for part in (*(f"{part};" for part in first), last):
        longer = f"{lines[-1]} {part}" if lines[-1] else part
        if len(longer) > width and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = longer
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines)


def set_title(figure: Figure, title: str) -> None:
    """Set the title above all panels, in the size of a panel's title."""
    figure.suptitle(title, fontsize=STYLE["axes.titlesize"])


def add_legend(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    columns: int = 1,
    marker_scale: float = 1.0,
) -> None:
    """Add a legend below all panels, where it covers nothing."""
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        markerscale=marker_scale,
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save `figure` as `stem`.pdf and `stem`.png.

    Without dates, so that the same runs give the same files. An image of more pixels than
    matplotlib makes has a lower resolution.

    Returns:
        The files written.
    """
    files = [stem.with_name(f"{stem.name}.pdf"), stem.with_name(f"{stem.name}.png")]
    figure.savefig(files[0], metadata={"CreationDate": None})
    figure.savefig(files[1], dpi=min(DPI, MOST_PIXELS / max(figure.get_size_inches())))
    return files


def literal(text: str) -> str:
    """Escape what matplotlib cannot draw, and dollar signs, between which it would read math."""
    return (text if text.isprintable() else on_one_line(text)).replace("$", r"\$")
