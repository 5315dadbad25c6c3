"""How time and memory of a step grow with samples, domains and parameters.

The step is that of `bench_step.py`, on a small convolutional network: three 3×3 convolutions of
w, 2w and 2w filters, each followed by ReLU and GroupNorm, on images of 1×28×28. One of
samples per domain, number of domains, and w varies; the others stay at 16, 3 and 32. Times are
medians; peaks are measured as there, all sizes one after another in one process per contender.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from pages import explained, measured, write_numbers, write_section
from tabulate import tabulate
from timed_steps import (
    Platform,
    Workload,
    described,
    freeing_memory,
    measure_peak,
    measure_times,
)
from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.reports.figures.canvas import COLORS, MARKERS, STYLE

CONTENDERS = {
    "erm": "ERM",
    "fishr classifier native": "Fishr, classifier",
    "fishr all native": "Fishr, all parameters",
}
HEADING = "## Growth"  # where the page's part of this script begins

Point = tuple[int, int, int]  # domains, samples of each, width
GRIDS: dict[str, list[Point]] = {
    "samples of each domain": [(3, n, 32) for n in (8, 16, 32, 64, 128)],
    "domains": [(d, 16, 32) for d in (2, 4, 8, 16)],
    "parameters": [(3, 16, w) for w in (16, 32, 64, 128)],
}


def cnn(*, input_shape: Sequence[int], num_classes: int, width: int) -> Model:
    """Build the network; `width` is w, a multiple of 8."""
    layers: list[nn.Module] = []
    channels = [input_shape[0], width, 2 * width, 2 * width]
    for i, stride in enumerate((1, 2, 1)):
        convolution = nn.Conv2d(channels[i], channels[i + 1], 3, stride=stride, padding=1)
        layers += [convolution, nn.ReLU(), nn.GroupNorm(8, channels[i + 1])]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Model(nn.Sequential(*layers), nn.Linear(2 * width, num_classes))


def workload(point: Point) -> Workload:
    """The network and batch of one point."""
    domains, samples, width = point
    return Workload(partial(cnn, width=width), domains, samples, (1, 28, 28), 10)


def size(axis: str, point: Point) -> int:
    """Where a point lies on an axis."""
    domains, samples, _ = point
    if axis == "parameters":
        return sum(p.numel() for p in workload(point).model("cpu").parameters())
    return domains if axis == "domains" else samples


def measure_peaks(name: str, platform: Platform) -> list[int]:
    """Peaks of one contender at every point, in this process, in bytes."""
    return [measure_peak(workload(p), name, platform) for grid in GRIDS.values() for p in grid]


def peaks_in_a_process(name: str, arguments: argparse.Namespace) -> list[int]:
    """Run `measure_peaks` in a process of its own."""
    command = [sys.executable, __file__, "--peaks-of", name]
    for option in ("threads", "device", "precision"):
        command += [f"--{option}", str(getattr(arguments, option))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=freeing_memory(), check=True
    )
    return json.loads(done.stdout)


def measure(rounds: int, platform: Platform, peaks: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Time every point and return a row for each point and contender."""
    rows, points = [], [(axis, point) for axis, grid in GRIDS.items() for point in grid]
    for i, (axis, point) in enumerate(points):
        times, _ = measure_times(workload(point), [*CONTENDERS], rounds, platform, sparing=False)
        for name, own in times.items():
            rows.append(
                {
                    "axis": axis,
                    "size": size(axis, point),
                    "contender": name,
                    "milliseconds": float(np.median([*own.values()])),
                    "peak": peaks[name][i],
                }
            )
        print(axis, rows[-1]["size"], *(f"{r['milliseconds']:.4g} ms" for r in rows[-3:]))
    return rows


def slope(rows: Sequence[dict[str, Any]], quantity: str) -> float:
    """Exponent b of the power law size^b that fits best, on logarithmic axes."""
    x, y = ([row[key] for row in rows] for key in ("size", quantity))
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(rows: Sequence[dict[str, Any]], stem: Path) -> None:
    """Draw `stem`.png and `stem`.svg: a column for each axis, time above memory."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "growth", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, len(GRIDS), sharex="col", sharey="row")
        for column, axis in zip(panels.T, GRIDS, strict=True):
            for axes, quantity in zip(column, ("milliseconds", "peak"), strict=True):
                _draw_panel(axes, [row for row in rows if row["axis"] == axis], quantity)
            column[1].set_xlabel(axis)
        panels[0, 0].set_ylabel("milliseconds a step")
        panels[1, 0].set_ylabel("peak memory (MiB)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(stem.with_suffix(".png"), dpi=200)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _draw_panel(axes: Any, rows: Sequence[dict[str, Any]], quantity: str) -> None:
    unit = 2**20 if quantity == "peak" else 1
    for number, (name, label) in enumerate(CONTENDERS.items()):
        own = [row for row in rows if row["contender"] == name]
        color = "black" if name == "erm" else COLORS[number - 1]
        axes.plot(
            [row["size"] for row in own],
            [row[quantity] / unit for row in own],
            color=color, marker=MARKERS[number], markersize=3.5, linewidth=1.2, label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({row["size"] for row in rows})
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(linewidth=0.4, alpha=0.4)


def _short(number: float) -> str:
    return f"{number:g}" if number < 1000 else f"{number / 1000:.3g}k"


def render(rows: Sequence[dict[str, Any]], head: str, figure: str) -> str:
    """The page's part: text, figure, table, and the exponents."""
    table, sizes = [], {(row["axis"], row["size"]): None for row in rows}
    for axis, at in sizes:
        own = {r["contender"]: r for r in rows if (r["axis"], r["size"]) == (axis, at)}
        line: list[Any] = [axis, at]
        for quantity, unit in (("milliseconds", 1), ("peak", 2**20)):
            for name in CONTENDERS:
                ratio = own[name][quantity] / own["erm"][quantity]
                value = f"{own[name][quantity] / unit:.3g}"
                line.append(value if name == "erm" else f"{value} ({ratio:.2f})")
        table.append(line)
    columns = [f"{label}, {unit}" for unit in ("ms", "MiB") for label in CONTENDERS.values()]
    exponents = []
    for axis in GRIDS:
        lines = [[r for r in rows if (r["axis"], r["contender"]) == (axis, n)] for n in CONTENDERS]
        slopes = [slope(line, quantity) for quantity in ("milliseconds", "peak") for line in lines]
        exponents.append([axis, *(f"{b:.2f}" for b in slopes)])
    about = explained(__doc__)
    return "\n\n".join(
        [
            HEADING,
            head,
            about,
            f"![Time and memory over samples, domains and parameters]({figure})",
            "In brackets: as a multiple of ERM.",
            tabulate(table, ["axis", "size", *columns], tablefmt="github", disable_numparse=True),
            "Exponents b of the best fitting power laws size^b:",
            tabulate(exponents, ["axis", *columns], tablefmt="github", disable_numparse=True),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, draw, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="steps of each contender at each point (default 5)")
    add("--threads", type=int, default=1, help="threads of one operation (default 1)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--figure", type=Path, metavar="STEM", help="draw STEM.png and STEM.svg")
    add("--json", type=Path, metavar="FILE", help="write the numbers")
    add("--markdown", type=Path, metavar="FILE", help="write the section Growth of this page")
    add("--peaks-of", choices=CONTENDERS, metavar="NAME", help="print only its peaks, in bytes")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    platform = Platform(arguments.device, arguments.precision)
    if arguments.peaks_of:
        print(json.dumps(measure_peaks(arguments.peaks_of, platform)))
        return
    head = measured(f"threads: {arguments.threads}", described(platform), device=platform.device)
    peaks = {name: peaks_in_a_process(name, arguments) for name in CONTENDERS}
    rows = measure(arguments.rounds, platform, peaks)
    if arguments.figure:
        draw(rows, arguments.figure)
    if arguments.json:
        write_numbers(arguments.json, {"header": head, "rows": rows})
    figure = f"{arguments.figure.name if arguments.figure else 'growth'}.png"
    section = render(rows, head, figure)
    print(section)
    if arguments.markdown:
        write_section(arguments.markdown, section)


if __name__ == "__main__":
    logging.getLogger("fishr_exp").setLevel(logging.ERROR)  # random weights are meant here
    main()
