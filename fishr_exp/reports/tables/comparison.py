"""A protocol's table: our figures, the published ones, and a verdict on each of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fishr_exp.reports.published import Published
from fishr_exp.reports.statistics.estimates import Estimate, mean, population_std

Verdict = Literal["within", "higher", "lower", "not published", "departs"]
DIGITS = 1  # of published figures


@dataclass(frozen=True)
class Trace:
    """One accuracy behind a cell, and its source."""

    trial: int  # trial_seed, or seed
    accuracy: float  # percent
    run: Path
    pairs: tuple[
        Path, ...
    ] = ()  # runs that also leave out a second domain, from which the value is
    hparams_seed: int | None = None
    candidates: int | None = None  # number of hyperparameter choices
    step: int | None = None
    value: float | None = None  # the selection criterion, percent


@dataclass(frozen=True)
class Cell:
    """Our figure in percent, None if it is missing, and the published one, if any."""

    own: Estimate | None
    published: Published | None = None
    traces: tuple[Trace, ...] = ()
    departs: bool = False  # from the settings of the published figure

    @property
    def verdict(self) -> Verdict | None:
        """Ours compared within the published error, as printed; None if ours is missing.

        Without a published error, only the published figure itself is within.
        """
        if self.own is None:
            return None
        if self.published is None:
            return "not published"
        if self.departs:
            return "departs"
        difference = round(self.own.mean, DIGITS) - self.published.mean
        if abs(difference) <= (self.published.error or 0.0) + 1e-9:
            return "within"
        return "higher" if difference > 0 else "lower"


@dataclass(frozen=True)
class ComparisonRow:
    """One of our methods, or one that is only published."""

    method: str
    cells: Mapping[str, Cell]  # column -> cell
    repeats: int  # trials or seeds
    published_only: bool = False
    origin: str = ""  # of a published row beside ours: the name of its source, or `published`


@dataclass(frozen=True)
class Comparison:
    """A table of one protocol."""

    protocol: str
    selection: str | None
    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    repeated: str  # the name of the repeats: trials, seeds
    separate_columns: bool  # whether published figures have their own columns
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no cell has a figure of ours."""
        return not any(cell.own for row in self.rows for cell in row.cells.values())


def over_trials(values: Sequence[float]) -> Estimate | None:
    """Estimate a mean as DomainBed does: the error is the population std over sqrt(trials).

    None if there are none or one is NaN; a single trial has no error.
    """
    return _estimate(values, math.sqrt(len(values) or 1))


def over_restarts(values: Sequence[float]) -> Estimate | None:
    """Estimate a mean as for Colored MNIST: the error is the population standard deviation.

    None if there are none or one is NaN; a single restart has no error.
    """
    return _estimate(values, 1.0)


def _estimate(values: Sequence[float], root: float) -> Estimate | None:
    if not values or any(math.isnan(value) for value in values):
        return None
    error = population_std(values) / root if len(values) > 1 else None
    return Estimate(mean(values), error, len(values))
