"""Differences paired over seeds: a confidence interval and a significance test of their mean.

Two methods at one seed share splits, minibatches and initial weights, so the difference within a
seed varies less than either accuracy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999
EXACT = RESAMPLES.bit_length() - 1  # most seeds of which a test uses all combinations of signs


@dataclass(frozen=True)
class Paired:
    """Inference about the mean of differences over seeds, in their unit."""

    low: float  # of the bootstrap interval
    high: float
    p: float  # of the sign-flip test, two-sided, not corrected


def compare(differences: Sequence[float]) -> Paired | None:
    """Test against a mean difference of 0; None for fewer than two seeds.

    Args:
        differences: One per seed.
    """
    if len(differences) < 2:
        return None
    low, high = bootstrap_interval(differences)
    return Paired(low, high, sign_flip_p(differences))


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean, at `CONFIDENCE`.

    It is always between the smallest and the largest difference, so n seeds limit its coverage, see
    `coverage_bound`. The resamples have a fixed seed: the same runs give the same interval.

    Raises:
        ValueError: If there are fewer than two differences.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    import numpy as np

    if len(differences) < 2:
        raise ValueError("an interval needs two differences or more")
    values = np.asarray(differences, dtype=float)
    resamples, place = _distinct(len(values))
    means = values[resamples].mean(axis=-1)[place]
    tail = (1 - CONFIDENCE) / 2  # BCa is not defined where all differences are equal
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@functools.lru_cache(maxsize=4)
def _resampled(n: int) -> np.ndarray:
    """Return the values that each resample of n draws, by place: [RESAMPLES, n]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


@functools.lru_cache(maxsize=4)
def _distinct(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each resample of n once, of three seeds 27, and which one each of all is."""
    import numpy as np

    rows, place = np.unique(_resampled(n), axis=0, return_inverse=True)
    return np.ascontiguousarray(rows), place.reshape(-1)


def coverage_bound(n: int) -> float:
    """Return the maximum coverage of the median for an interval within the range of n values.

    All n are on the same side of it with probability 2^(1-n). For n = 3, 75 % remain.
    """
    return 1 - 2.0 ** (1 - n)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip test of the mean.

    Without an effect, each difference could equally have the opposite sign. All 2^n combinations of
    signs are used (for more than `EXACT` seeds, `RESAMPLES` random ones). The test is exact for any
    symmetric distribution, while the t-test assumes a normal one; its limitation is `smallest_p`.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    observed, signs = values.mean(), _signs(len(values))
    means = (values * signs).mean(axis=-1)
    equal = 100 * np.finfo(float).eps * abs(observed)  # means that differ less are the same one
    drawn = int(len(values) > EXACT)  # what was measured then counts as one of the combinations
    tails = [np.sum(means <= observed + equal), np.sum(means >= observed - equal)]
    return min(1.0, 2 * (float(min(tails)) + drawn) / (len(means) + drawn))


@functools.lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """Return the combinations of n signs, 1 and -1: [2^n, n] or, of more than `EXACT`, random."""
    import numpy as np

    if n <= EXACT:
        bits = np.arange(2**n)[:, None] >> np.arange(n)
        return 1.0 - 2 * (bits & 1)
    pairs = np.tile(np.arange(2), (RESAMPLES, n, 1))
    return 1.0 - 2 * np.random.default_rng(0).permuted(pairs, axis=-1)[..., 0]


def smallest_p(n: int) -> float:
    """Return the smallest p-value that `sign_flip_p` can return for n differences.

    Of all combinations, the two with equal signs: 2 of 2^n. Of random ones, none is as far from 0
    as what was measured, which counts as one of them.
    """
    return 2.0 ** (1 - n) if n <= EXACT else 2 / (RESAMPLES + 1)


def seeds_needed(comparisons: int) -> int | None:
    """Return the number of seeds from which a corrected p-value can be at most 0.05.

    None if no number is enough: above `EXACT` seeds, more do not lower the smallest p-value.
    """
    numbers = range(2, EXACT + 2)
    return next((n for n in numbers if comparisons * smallest_p(n) <= 1 - CONFIDENCE + 1e-12), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, which controls the family-wise error rate.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
