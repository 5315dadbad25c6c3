"""DomainBed's three methods to select hyperparameters and a checkpoint.

All report the accuracy on the test domain's training part (80 %). They read records only, of one
dataset, method, trial and test domain.

Source:
    Gulrajani & Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, and DomainBed's code.

Departs:
    NaN counts as minus infinity in all comparisons. In DomainBed it does so between
    hyperparameters; between checkpoints, a NaN at the first one hides all later ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fishr_exp.runs.history import Evaluation, History


class Choice(NamedTuple):
    """The selected run and checkpoint of one trial and test domain."""

    value: float  # the selection criterion, which was the highest
    accuracy: float  # in the test domain, a fraction; NaN if not recorded
    step: int
    run: History  # the run that leaves out only the test domain
    pairs: tuple[History, ...] = ()  # the runs that also leave out a second domain
    candidates: int = 1  # number of hyperparameter choices


def by_training_domains(runs: Sequence[History], target: int) -> Choice | None:
    """Select the checkpoint with the best mean over the training domains' validation parts.

    Of equal checkpoints the first is selected. A run that has chosen its result itself has no
    other.

    Args:
        runs: All runs of one hparams_seed.
        target: The test domain's number.
    """
    run = _single(runs, target)
    if run is None:
        return None
    choices = [
        Choice(_mean_but(at.validation, target), at.train[target], at.step, run)
        for at in run.evaluations
    ]
    return max(choices, key=_rank)


def by_test_domain(runs: Sequence[History], target: int) -> Choice | None:
    """Select the last checkpoint, by the test domain's validation part: the oracle.

    For the arguments, see `by_training_domains`.
    """
    run = _single(runs, target)
    if run is None:
        return None
    last = run.evaluations[-1]
    return Choice(last.validation[target], last.train[target], last.step, run)


def by_leaving_one_out(runs: Sequence[History], target: int) -> Choice | None:
    """Select the step with the best mean over second domains that were also left out.

    At a step, the value is the mean over the other domains v of v's training part in the run whose
    test domains are `target` and v. Steps that one of these runs lacks do not count, and of equal
    steps the first is selected. For the arguments, see `by_training_domains`.
    """
    run = _single(runs, target)
    if run is None:
        return None
    others = [domain for domain in range(len(run.domains)) if domain != target]
    pairs = {
        domain: pair for domain in others for pair in runs if pair.test_domains == {target, domain}
    }
    if len(pairs) < len(others):
        return None
    by_step = {
        domain: {_place(pair, at): at for at in pair.evaluations} for domain, pair in pairs.items()
    }
    choices = [
        Choice(
            _mean([by_step[domain][_place(run, at)].train[domain] for domain in others]),
            at.train[target],
            at.step,
            run,
            tuple(pairs.values()),
        )
        for at in run.evaluations
        if all(_place(run, at) in steps for steps in by_step.values())
    ]
    return max(choices, key=_rank, default=None)


SELECTIONS: dict[str, Callable[[Sequence[History], int], Choice | None]] = {
    "training": by_training_domains,
    "oracle": by_test_domain,
    "leave_one_out": by_leaving_one_out,
}


def select(runs: Iterable[History], target: int, selection: str) -> Choice | None:
    """Select hyperparameters and checkpoint for the test domain `target`; None if impossible.

    Of equal hyperparameters those with the larger hparams_seed are selected.

    Args:
        runs: Runs of one dataset, method and trial.
        target: The test domain's number.
        selection: One of `SELECTIONS`.
    """
    by_hparams: dict[int, list[History]] = {}
    for run in runs:
        by_hparams.setdefault(run.hparams_seed, []).append(run)
    found = (SELECTIONS[selection](by_hparams[seed], target) for seed in sorted(by_hparams))
    choices = [choice for choice in found if choice is not None]
    if not choices:
        return None
    return max(reversed(choices), key=_rank)._replace(candidates=len(choices))


def _single(runs: Sequence[History], target: int) -> History | None:
    return next((run for run in runs if run.test_domains == {target}), None)


def _mean_but(values: Sequence[float], target: int) -> float:
    return _mean([value for domain, value in enumerate(values) if domain != target])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))  # bit by bit as in DomainBed's code, since ties depend on it


def _place(run: History, at: Evaluation) -> int | str:
    """Return what evaluations of several runs are compared at: the step, or that it is the result.

    Runs that choose their result themselves, as with SWAD, do so at different steps.
    """
    return "result" if run.only_choice else at.step


def _rank(choice: Choice) -> float:
    return -math.inf if math.isnan(choice.value) else choice.value
