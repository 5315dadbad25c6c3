"""Mean and spread over repeated runs. Protocols report different measures of spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over repeats with its standard error, in the unit of the values."""

    mean: float
    standard_error: float | None  # None for a single value
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean, standard error and count of `values`; None if there are none."""
    if not values:
        return None
    return Estimate(mean(values), standard_error(values), len(values))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean.

    Raises:
        ValueError: If `values` is empty.
    """
    if not values:
        raise ValueError("there are no values")
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean: sample standard deviation (n - 1) over sqrt(n).

    The error in this project's tables and figures, since it shows how accurate the mean is.

    Returns:
        The standard error, or None for a single value, whose spread is unknown.

    Departs:
        DomainBed's tables show the population standard deviation (n) over sqrt(n), which is
        sqrt((n - 1) / n) of this: 18 % smaller for three trials.
    """
    n = len(values)
    if n < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((v - center) ** 2 for v in values) / (n - 1) / n)


def population_std(values: Sequence[float]) -> float:
    """Return the standard deviation with n in the denominator, as `numpy.std` does by default.

    The spread in the Colored MNIST tables of IRM (Arjovsky et al. 2019), V-REx and Fishr: over ten
    restarts, and not divided by their root. Over sqrt(n), it is the error in DomainBed's tables
    (Gulrajani & Lopez-Paz 2021).

    Raises:
        ValueError: If `values` is empty.
    """
    center = mean(values)
    return math.sqrt(math.fsum((v - center) ** 2 for v in values) / len(values))
