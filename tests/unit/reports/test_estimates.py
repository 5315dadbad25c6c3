from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishr_exp.reports.statistics.estimates import estimate, mean, population_std, standard_error

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=20)


def test_by_hand():
    # 70, 72, 74: sample variance 4, over 3 values
    assert estimate([70.0, 72.0, 74.0]) == (72.0, pytest.approx(math.sqrt(4 / 3)), 3)
    assert population_std([70.0, 72.0, 74.0]) == pytest.approx(math.sqrt(8 / 3))


def test_one_value_has_no_error_and_none_no_estimate():
    assert estimate([0.5]) == (0.5, None, 1)
    assert population_std([0.5]) == 0.0
    assert estimate([]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])


@given(VALUES)
def test_as_numpy(values):
    assert mean(values) == pytest.approx(np.mean(values), abs=1e-12)
    assert population_std(values) == pytest.approx(np.std(values), abs=1e-12)
    expected = np.std(values, ddof=1) / np.sqrt(len(values))
    assert standard_error(values) == pytest.approx(expected, abs=1e-12)


@given(VALUES)
def test_relation_to_the_error_that_domainbed_shows(values):
    n = len(values)
    error = standard_error(values)
    assert error is not None
    shown = population_std(values) / math.sqrt(n)
    assert shown == pytest.approx(error * math.sqrt((n - 1) / n), abs=1e-12)
