"""Whole commands in processes of their own: what they took, in turns, and tables of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

# What is imported here is kept small: a process that this one starts counts its memory as its own.

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, of the process and those that it waited for
    peak: int  # bytes, the most of one process
    output: str

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.peak, other.peak),
            self.output + other.output,
        )


@dataclass(frozen=True)
class Table:
    """A table of the page, with sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def show(self, style: str) -> str:
        """Return it as text."""
        from tabulate import tabulate

        own = [f"### {self.title}"]
        if self.rows:
            own.append(tabulate(self.rows, self.columns, tablefmt=style, disable_numparse=True))
        return "\n\n".join([*own, *self.notes])


def call(
    command: str,
    words: Sequence[str],
    folder: Path,
    *,
    code: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command of the package in a folder.

    Args:
        command: The name of its module in `fishr_exp.cli`.
        words: Its arguments.
        folder: Where it runs.
        code: The checkout that it is taken from.
        env: Variables beside those of this process.

    Raises:
        RuntimeError: If it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code), **(env or {})}
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", f"fishr_exp.cli.{command}", *words],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{command} {' '.join(words)[:200]}: {text[-2000:]}")
    print(f"{command} {' '.join(words)[:70]}: {wall:.1f} s", file=sys.stderr, flush=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, text)


def in_turns(ways: Mapping[str, Callable[[int], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Call every way in every round, with its number; every second round in reverse order."""
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for i in range(rounds):
        for way in [*ways][:: -1 if i % 2 else 1]:
            costs[way].append(ways[way](i))
    return costs


def times(costs: Mapping[str, list[Cost]], way: str) -> list[str]:
    """Return seconds, and their ratios to the first way, as cells: wall, CPU, ratio of each."""
    own, first = costs[way], next(iter(costs.values()))
    cells = [seconds(median(getattr(cost, kind) for cost in own)) for kind in ("wall", "cpu")]
    if own is first:
        return [*cells, "", ""]
    for kind in ("wall", "cpu"):
        pairs = zip(own, first, strict=True)
        cells.append(f"{median(getattr(a, kind) / getattr(b, kind) for a, b in pairs):.2f}")
    return cells


def seconds(value: float) -> str:
    """Write seconds with three digits, without more than two decimals."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def verdict(value: float, bar: float | None, unit: str) -> str:
    """Compare with an aim, if there is one."""
    if bar is None:
        return ""
    return f"≤ {bar:g}{unit} {'met' if value <= bar else 'not met'}"
