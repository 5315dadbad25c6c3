"""Differences paired over seeds: a confidence interval and a significance test of their mean.

Two methods at one seed share splits, minibatches and initial weights, so the difference within a
seed varies less than either accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(differences, dtype=float),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",  # BCa is not defined where all differences are equal
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


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
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=float)
    found = permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def smallest_p(n: int) -> float:
    """Return the smallest p-value that `sign_flip_p` can return for n differences.

    Of all combinations, the two with equal signs: 2 of 2^n. Of random ones, none is as far from 0
    as what was measured, which counts as one of them.
    """
    return 2.0 ** (1 - n) if n <= EXACT else 2 / (RESAMPLES + 1)


def seeds_needed(comparisons: int, level: float = 1 - CONFIDENCE) -> int | None:
    """Return the number of seeds from which a corrected p-value can be at most `level`.

    None if no number is enough: above `EXACT` seeds, more do not lower the smallest p-value.
    """
    numbers = range(2, EXACT + 2)
    return next((n for n in numbers if comparisons * smallest_p(n) <= level + 1e-12), None)


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
