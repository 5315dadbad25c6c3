from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishr_exp.reports.statistics.paired import (
    CONFIDENCE,
    _resampled,
    bootstrap_interval,
    compare,
    coverage_bound,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)

DIFFERENCES = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=7)


def test_three_seeds_give_their_range_and_no_small_p():
    found = compare([22.0, 38.0, 30.0])
    assert (found.low, found.high) == (22.0, 38.0)  # all three drawn alike: 1/27, above 2.5 %
    assert found.p == smallest_p(3) == 0.25
    assert coverage_bound(3) == 0.75


@settings(deadline=None, max_examples=30)
@given(DIFFERENCES)
def test_sign_flips_are_all_tried(differences):
    values = np.array(differences)
    flipped = [
        abs((values * signs).mean()) for signs in itertools.product([1, -1], repeat=len(values))
    ]
    expected = np.mean([mean >= abs(values.mean()) - 1e-9 for mean in flipped])
    assert sign_flip_p(differences) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(DIFFERENCES)
def test_the_interval_holds_the_mean_and_stays_in_the_range(differences):
    low, high = bootstrap_interval(differences)
    middle = np.mean(differences)
    assert min(differences) <= low <= middle + 1e-9
    assert middle - 1e-9 <= high <= max(differences)
    assert bootstrap_interval(differences) == (low, high)  # the same each time


def test_many_seeds_give_the_interval_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(list(values))
    error = values.std(ddof=1) / 20
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_the_interval_of_three_seeds_covers_as_often_as_said():
    draw = np.random.default_rng(0)
    samples = draw.normal(0.0, 1.0, (4000, 3))
    covered = np.mean((samples.min(1) < 0) & (samples.max(1) > 0))
    assert covered == pytest.approx(coverage_bound(3), abs=0.03)


def test_one_seed_compares_nothing():
    assert compare([5.0]) is None


def test_holm_by_hand():
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to 0.06), 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.25, 0.25, 0.25]) == pytest.approx([0.75, 0.75, 0.75])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 12, 13, 14, 15, 30])
def test_the_smallest_p_is_what_the_test_returns_at_best(n):
    assert sign_flip_p([1.0 + i / 100 for i in range(n)]) == pytest.approx(smallest_p(n))


@pytest.mark.parametrize("n", [12, 13, 14, 15])
def test_no_p_is_below_the_smallest(n):
    draw = np.random.default_rng(n)
    for mean in (0.0, 1.0, 5.0):
        assert sign_flip_p(list(draw.normal(mean, 1.0, n))) >= smallest_p(n) - 1e-12


def test_seeds_that_a_corrected_p_needs():
    for comparisons in (*range(1, 12), 204, 205, 250):
        n = seeds_needed(comparisons)
        assert comparisons * smallest_p(n) <= 0.05 + 1e-12
        assert comparisons * smallest_p(n - 1) > 0.05
    assert seeds_needed(204) == 13
    assert seeds_needed(250) == 14
    assert seeds_needed(251) is None  # 2 of 10000, 251 times, is above 0.05


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 20])
def test_the_interval_is_that_of_all_resamples(n):
    """Bit for bit, though the mean of equal resamples is taken once."""
    draw, tail = np.random.default_rng(n), (1 - CONFIDENCE) / 2
    for values in (*draw.normal(0.5, 2.0, (20, n)), np.full(n, 0.1)):
        means = values[_resampled(n)].mean(axis=-1)
        expected = np.quantile(means, [tail, 1 - tail])
        assert bootstrap_interval(list(values)) == tuple(expected)


@pytest.mark.parametrize("n", [2, 3, 7, 8, 13, 14, 20])
def test_the_same_as_scipy_s(n):
    """SciPy's functions, whose import and checks take longer than all else of a table."""
    from scipy.stats import bootstrap, permutation_test

    draw = np.random.default_rng(n)
    for values in (draw.normal(0.5, 2.0, n), draw.integers(-3, 4, n) / 10, np.full(n, 0.1)):
        interval = bootstrap(
            (values,), np.mean, confidence_level=0.95, n_resamples=9999, method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        p = permutation_test(
            (values, np.zeros(n)), lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples", vectorized=True, n_resamples=9999,
            rng=np.random.default_rng(0),
        ).pvalue  # fmt: skip
        found = compare(list(values))
        assert (found.low, found.high) == pytest.approx(tuple(interval), rel=1e-12)
        assert found.p == pytest.approx(p, rel=1e-12)
