"""The three selections on hand-made records, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fishr_exp.reports.statistics.selection import select
from fishr_exp.runs.history import Evaluation, History

NAN = math.nan


def run(test_domains, *evaluations, hparams_seed=0, domains=3):
    """A run; an evaluation is (step, training parts, validation parts)."""
    return History(
        path=Path(f"{sorted(test_domains)}-{hparams_seed}"),
        dataset="d",
        method="m",
        trial_seed=0,
        hparams_seed=hparams_seed,
        test_domains=frozenset(test_domains),
        domains=tuple("abcdef"[:domains]),
        evaluations=tuple(Evaluation(*evaluation) for evaluation in evaluations),
    )


def test_training_takes_the_checkpoint_with_the_best_mean_over_training_domains():
    one = run(
        {1},
        (0, (0.1, 0.50, 0.1), (0.6, 1.0, 0.6)),  # the test domain's own validation must not count
        (300, (0.1, 0.51, 0.1), (0.9, 0.0, 0.5)),  # mean 0.7: the best
        (600, (0.1, 0.52, 0.1), (0.8, 0.0, 0.5)),
    )
    choice = select([one], 1, "training")
    assert (choice.step, choice.accuracy, choice.candidates) == (300, 0.51, 1)
    assert choice.value == pytest.approx(0.7)


def test_training_compares_hyperparameters_by_their_best_checkpoint():
    worse = run({0}, (0, (0.9, 0, 0), (0, 0.7, 0.7)), (300, (0.9, 0, 0), (0, 0.1, 0.1)))
    better = run(
        {0}, (0, (0.3, 0, 0), (0, 0.8, 0.8)), (300, (0.2, 0, 0), (0, 0.4, 0.4)), hparams_seed=1
    )
    choice = select([worse, better], 0, "training")
    assert (choice.run, choice.step, choice.accuracy, choice.candidates) == (better, 0, 0.3, 2)


def test_the_first_of_equal_checkpoints_and_the_last_of_equal_hyperparameters_win():
    runs = [
        run(
            {0},
            (0, (0.10 + seed / 100, 0, 0), (0, 0.7, 0.7)),
            (300, (0.20 + seed / 100, 0, 0), (0, 0.7, 0.7)),
            hparams_seed=seed,
        )
        for seed in (2, 10, 1)
    ]
    choice = select(runs, 0, "training")
    assert (choice.run.hparams_seed, choice.step) == (10, 0)  # 10 is later than 2: as numbers


def test_runs_that_leave_out_two_domains_are_for_leave_one_out_alone():
    single = run({0}, (0, (0.4, 0, 0), (0.4, 0.5, 0.5)))
    pair = run({0, 1}, (0, (0.8, 0, 0), (0.9, 0.9, 0.9)), hparams_seed=1)
    for selection in ("training", "oracle"):
        assert select([single, pair], 0, selection).run is single
        assert select([pair], 0, selection) is None


def test_oracle_looks_at_the_last_step_only():
    early = run({2}, (0, (0, 0, 0.9), (0, 0, 0.99)), (300, (0, 0, 0.3), (0, 0, 0.3)))
    late = run({2}, (0, (0, 0, 0.2), (0, 0, 0.2)), (300, (0, 0, 0.5), (0, 0, 0.4)), hparams_seed=1)
    choice = select([early, late], 2, "oracle")
    assert (choice.run, choice.step, choice.value, choice.accuracy) == (late, 300, 0.4, 0.5)


def leave_one_out_runs(hparams_seed=0, lift=0.0):
    """Target 0. At step 300 the pairs say 0.4 and 0.6 (+ lift), at step 0 both say 0.3."""
    return [
        run(
            {0}, (0, (0.11, 0, 0), (1, 1, 1)), (300, (0.22, 0, 0), (0, 0, 0)),
            hparams_seed=hparams_seed,
        ),
        run(
            {0, 1}, (0, (1, 0.3, 1), (1, 1, 1)), (300, (1, 0.4 + lift, 1), (1, 1, 1)),
            hparams_seed=hparams_seed,
        ),
        run(
            {0, 2}, (0, (1, 1, 0.3), (1, 1, 1)), (300, (1, 1, 0.6 + lift), (1, 1, 1)),
            hparams_seed=hparams_seed,
        ),
    ]  # fmt: skip


def test_leave_one_out_takes_the_step_with_the_best_mean_over_pairs():
    runs = leave_one_out_runs()
    choice = select(runs, 0, "leave_one_out")
    assert (choice.run, choice.step, choice.accuracy) == (runs[0], 300, 0.22)
    assert choice.value == pytest.approx(0.5)
    assert choice.pairs == (runs[1], runs[2])


def test_leave_one_out_compares_hyperparameters():
    runs = leave_one_out_runs() + leave_one_out_runs(1, lift=0.1) + leave_one_out_runs(2, lift=0.05)
    choice = select(runs, 0, "leave_one_out")
    assert (choice.run.hparams_seed, choice.candidates) == (1, 3)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_leave_one_out_needs_the_run_and_all_its_pairs(missing):
    runs = leave_one_out_runs()
    del runs[missing]
    assert select(runs, 0, "leave_one_out") is None
    assert select(runs + leave_one_out_runs(3), 0, "leave_one_out").candidates == 1


def test_leave_one_out_does_not_mix_hyperparameters():
    runs = leave_one_out_runs()[:2] + leave_one_out_runs(1)[2:]
    assert select(runs, 0, "leave_one_out") is None


def test_leave_one_out_counts_no_step_that_a_pair_lacks():
    runs = leave_one_out_runs()
    runs[2] = run({0, 2}, (0, (1, 1, 0.3), (1, 1, 1)))
    assert select(runs, 0, "leave_one_out").step == 0
    runs[2] = run({0, 2}, (7, (1, 1, 0.3), (1, 1, 1)))
    assert select(runs, 0, "leave_one_out") is None


def test_nan_is_below_everything_else():
    first = run({0}, (0, (0.1, 0, 0), (0, NAN, 0.9)), (300, (0.2, 0, 0), (0, 0.1, 0.1)))
    assert select([first], 0, "training").step == 300
    diverged = run({0}, (300, (0.3, 0, 0), (NAN, NAN, NAN)), hparams_seed=1)
    assert select([first, diverged], 0, "training").run is first
    assert select([first, diverged], 0, "oracle").run is first
    assert select([diverged], 0, "oracle").accuracy == 0.3  # all there is
    runs = leave_one_out_runs()
    runs[1] = run({0, 1}, (0, (1, 0.0, 1), (1, 1, 1)), (300, (1, NAN, 1), (1, 1, 1)))
    assert select(runs, 0, "leave_one_out").step == 0


def test_nothing_comes_of_nothing():
    for selection in ("training", "oracle", "leave_one_out"):
        assert select([], 0, selection) is None


def chosen(test_domains, step, train, validation, **of):
    """A run that has chosen its result itself, as with SWAD, after so many steps."""
    return replace(run(test_domains, (step, train, validation), **of), only_choice=True)


@pytest.mark.parametrize("selection", ["training", "oracle"])
def test_hyperparameters_alone_are_selected_of_runs_that_chose_their_result(selection):
    worse = chosen({0}, 900, (0.9, 0, 0), (0.2, 0.6, 0.6))
    better = chosen({0}, 300, (0.4, 0, 0), (0.3, 0.7, 0.7), hparams_seed=1)
    choice = select([worse, better], 0, selection)
    assert (choice.run, choice.step, choice.accuracy, choice.candidates) == (better, 300, 0.4, 2)


def test_leave_one_out_compares_results_of_different_steps():
    single = chosen({0}, 900, (0.4, 0, 0), (0.4, 0.5, 0.5))
    pairs = [
        chosen({0, 1}, 300, (0.1, 0.6, 0), (0, 0, 0)),
        chosen({0, 2}, 600, (0.1, 0, 0.8), (0, 0, 0)),
    ]
    choice = select([single, *pairs], 0, "leave_one_out")
    assert (choice.step, choice.accuracy) == (900, 0.4)
    assert choice.value == pytest.approx(0.7)
    recorded = run({0, 2}, (900, (0.1, 0, 0.8), (0, 0, 0)))
    assert select([single, pairs[0], recorded], 0, "leave_one_out") is None
