from __future__ import annotations

import pytest

from fishr_exp.reports.tables.table import build_tables
from fishr_exp.runs.reading import read_runs


def table_of(factory):
    (table,) = build_tables(read_runs(factory.root).done)
    return table


def selections_of(factory):
    (curve,) = table_of(factory).curves
    return {selected.selection: selected for selected in curve.selections}


def test_each_selection_picks_by_its_own_accuracy(factory):
    accuracies = {  # gamma -> (validation, test) of seeds 0 and 1
        1.0: [(0.80, 0.20), (0.90, 0.30)],
        10.0: [(0.88, 0.50), (0.86, 0.40)],
        100.0: [(0.60, 0.70), (0.60, 0.30)],
    }
    for gamma, by_seed in accuracies.items():
        for seed, (validation, test) in enumerate(by_seed):
            factory.done("fishr", gamma, seed, test, validation)
    selections = selections_of(factory)
    assert selections["validation"].gamma == 10.0
    assert selections["validation"].by_seed == (10.0, 1.0)
    assert selections["validation"].test.mean == pytest.approx(45.0)
    assert selections["oracle"].gamma == 100.0
    assert selections["oracle"].by_seed == (100.0, 10.0)
    assert selections["oracle"].test == pytest.approx((50.0, 20.0, 2))


def test_erm_is_the_choice_of_gamma_zero(factory):
    factory.done("erm", None, 0, 0.5, validation=0.9)
    for gamma in (1.0, 10.0):
        factory.done("fishr", gamma, 0, 0.1, validation=0.8)
    assert {selected.gamma for selected in selections_of(factory).values()} == {0.0}


def test_only_seeds_that_all_gammas_have_count(factory):
    for seed in (0, 1):
        factory.done("fishr", 1.0, seed, 0.3, validation=[0.5, 0.99][seed])
    factory.done("fishr", 10.0, 0, 0.2, validation=0.6)
    selected = selections_of(factory)["validation"]
    assert (selected.gamma, selected.seeds) == (10.0, (0,))


def test_without_shared_seeds_validation_or_a_choice_nothing_is_picked(factory):
    factory.done("fishr", 1.0, 0, 0.3)
    assert selections_of(factory) == {}
    factory.done("fishr", 10.0, 1, 0.3)
    assert selections_of(factory) == {}
    factory.done("fishr", 10.0, 0, 0.3, validation=None)
    factory.done("fishr", 1.0, 1, 0.3, validation=None)
    assert set(selections_of(factory)) == {"oracle"}


def test_of_equal_gammas_the_smallest_is_picked(factory):
    for gamma in (10.0, 0.0, 1.0):
        factory.done("fishr", gamma, 0, 0.5)
    assert {selected.gamma for selected in selections_of(factory).values()} == {0.0}
