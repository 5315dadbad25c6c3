"""The gamma of a sweep that each selection method selects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fishr_exp.reports.statistics.estimates import Estimate, estimate, mean
from fishr_exp.runs.reading import Run

VALIDATION, ORACLE = "validation", "oracle"


@dataclass(frozen=True)
class SelectedGamma:
    """The gamma with the highest mean over seeds; the smallest if there are several."""

    selection: str  # `VALIDATION`: of the training domains; `ORACLE`: it sees the test domain
    gamma: float
    test: Estimate  # accuracy in the test domain with that gamma, in percent
    seeds: tuple[int, ...]  # seeds that all gammas have; others are not counted
    by_seed: tuple[float, ...]  # the gamma that each of these seeds alone would select


def select_gammas(runs: Mapping[float, Sequence[Run]], domain: str) -> tuple[SelectedGamma, ...]:
    """Select a gamma by each selection method that the runs allow.

    Args:
        runs: The runs of each gamma, one per seed; for fewer than two gammas the result is empty.
        domain: The test domain.
    """
    tested = {
        gamma: _by_seed(own, lambda run: run.test_accuracy.get(domain))
        for gamma, own in runs.items()
    }
    validated = {
        gamma: _by_seed(own, lambda run: run.validation_accuracy) for gamma, own in runs.items()
    }
    if len(runs) < 2:
        return ()
    found = (_select(VALIDATION, validated, tested), _select(ORACLE, tested, tested))
    return tuple(selected for selected in found if selected is not None)


Values = Mapping[float, Mapping[int, float]]  # gamma -> seed -> accuracy, a fraction


def _select(selection: str, values: Values, tested: Values) -> SelectedGamma | None:
    shared = set.intersection(*(set(values[g]) & set(tested[g]) for g in values))
    if not shared:
        return None
    seeds = tuple(sorted(shared))
    gamma = _best({g: mean([of[seed] for seed in seeds]) for g, of in values.items()})
    test = estimate([100 * tested[gamma][seed] for seed in seeds])
    assert test is not None
    by_seed = tuple(_best({g: of[seed] for g, of in values.items()}) for seed in seeds)
    return SelectedGamma(selection, gamma, test, seeds, by_seed)


def _best(values: Mapping[float, float]) -> float:
    return max(sorted(values), key=lambda gamma: values[gamma])


def _by_seed(runs: Sequence[Run], read: Callable[[Run], float | None]) -> dict[int, float]:
    return {run.seed: value for run in runs if (value := read(run)) is not None}
