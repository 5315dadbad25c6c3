"""Tables of runs: a row for each method, gamma and setting, averaged over seeds only.

Accuracies are in percent here, differences in percentage points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fishr_exp.reports.metric import metric_name
from fishr_exp.reports.statistics.estimates import Estimate, estimate
from fishr_exp.reports.statistics.gamma_selection import SelectedGamma, select_gammas
from fishr_exp.reports.statistics.paired import Paired, compare, holm
from fishr_exp.reports.tables.grouping import (
    Group,
    baselines_of,
    family,
    group_runs,
    header,
    labels_of,
    network,
    order_of_settings,
    partition,
    shown,
    varying,
)
from fishr_exp.runs.methods import ERM
from fishr_exp.runs.reading import ACCURACY, Run


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed."""

    method: str
    label: str  # what the row is called: its method, or ERM for gamma 0
    gamma: float | None
    settings: Mapping[str, str]  # setting -> its value, for the settings that vary in the table
    runs: tuple[Run, ...]  # one per seed, in the order of seeds
    train: Estimate | None
    validation: Estimate | None
    test: Mapping[str, Estimate | None]  # test domain -> accuracy over all its samples
    difference: Estimate | None  # to the baseline, in the first test domain, over shared seeds
    paired: Paired | None  # interval and p-value; None for ERM, gamma 0 and a single seed
    p: float | None  # corrected for all comparisons of the table
    unpaired: tuple[int, ...]  # seeds that only the row or only its baseline has
    selected_by_test_domain: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs."""
        return tuple(run.seed for run in self.runs)

    @property
    def is_baseline(self) -> bool:
        """Whether this is a row of the trainer ERM."""
        return self.runs[0].is_erm


@dataclass(frozen=True)
class Curve:
    """The rows of one method with the same settings, by ascending gamma."""

    method: str
    settings: Mapping[str, str]
    rows: Mapping[float, Row]  # by gamma; 0 is the baseline's, if the method has none of its own
    baseline: Row | None
    selections: tuple[SelectedGamma, ...]


@dataclass(frozen=True)
class Table:
    """All rows of one dataset with one set of test domains."""

    dataset: str
    model: str | None  # None where it varies; it is then among the settings
    test_domains: tuple[str, ...]
    setting_names: tuple[str, ...]
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]  # of the methods with a gamma
    repeats: tuple[Run, ...]  # runs whose row already has their seed; not counted
    metric: str = ACCURACY  # what the accuracies are, in a table of another one

    @property
    def title(self) -> str:
        """A short description: dataset, test domains and model."""
        domains = "test domain" if len(self.test_domains) == 1 else "test domains"
        title = f"{self.dataset}; {domains} {', '.join(self.test_domains)}"
        title = title if self.model is None else f"{title}; model {self.model}"
        return title if self.metric == ACCURACY else f"{title}; {metric_name(self.metric)}"


def build_tables(runs: Iterable[Run], metric: str = ACCURACY) -> list[Table]:
    """Build one table per dataset and set of test domains, in alphabetical order.

    Args:
        runs: The runs, as `measured_by` returns them.
        metric: What is in the place of their accuracies.
    """
    parts = partition(runs, lambda run: (run.dataset, tuple(sorted(run.test_domains))))
    return [_build_table(part, metric) for _, part in sorted(parts.items())]


def _build_table(runs: list[Run], metric: str) -> Table:
    groups, repeats = group_runs(runs)
    names = varying(groups)
    test_domains = runs[0].test_domains
    baselines = baselines_of(groups)
    labels = labels_of(groups)
    rows = _correct(
        [
            _build_row(group, label, shown(group, names), test_domains, baseline)
            for group, label, baseline in zip(groups, labels, baselines, strict=True)
        ]
    )
    models = {network(run) for run in runs}
    return Table(
        dataset=runs[0].dataset,
        model=models.pop() if len(models) == 1 else None,
        test_domains=test_domains,
        setting_names=tuple(header(name) for name in names),
        rows=tuple(sorted(rows, key=_order)),
        curves=tuple(
            sorted(_curves(groups, baselines, rows, test_domains[0]), key=_order_of_curve)
        ),
        repeats=tuple(repeats),
        metric=metric,
    )


def _build_row(
    group: Group,
    label: str,
    values: Mapping[str, str],
    test_domains: Sequence[str],
    baseline: Group | None,
) -> Row:
    runs = group.runs
    own, there = ({run.seed for run in g.runs} if g else set() for g in (group, baseline))
    differences = _differences(runs, baseline.runs, test_domains[0]) if baseline else []
    return Row(
        method=group.first.method,
        label=label,
        gamma=group.first.gamma,
        settings=values,
        runs=runs,
        train=_percent(run.train_accuracy for run in runs),
        validation=_percent(run.validation_accuracy for run in runs),
        test={d: _percent(run.test_accuracy.get(d) for run in runs) for d in test_domains},
        difference=estimate(differences),
        paired=compare(differences),
        p=None,
        unpaired=tuple(sorted(own ^ there)) if baseline else (),
        selected_by_test_domain=any(run.selected_by_test_domain for run in runs),
    )


def _differences(runs: Sequence[Run], baselines: Sequence[Run], domain: str) -> list[float]:
    """Return the differences in points at shared seeds, which have the same splits and noise."""
    there = {run.seed: run.test_accuracy.get(domain) for run in baselines}
    pairs = [(run.test_accuracy.get(domain), there.get(run.seed)) for run in runs]
    return [100 * (a - b) for a, b in pairs if a is not None and b is not None]


def _correct(rows: Sequence[Row]) -> list[Row]:
    """Correct the p-values of all rows for their number."""
    corrected = iter(holm([row.paired.p for row in rows if row.paired]))
    return [replace(row, p=next(corrected)) if row.paired else row for row in rows]


def _curves(
    groups: Sequence[Group],
    baselines: Sequence[Group | None],
    rows: Sequence[Row],
    domain: str,
) -> Iterable[Curve]:
    """Join the rows that differ only in gamma."""
    row_of = {id(group): row for group, row in zip(groups, rows, strict=True)}
    pairs = [
        pair for pair in zip(groups, baselines, strict=True) if pair[0].first.gamma is not None
    ]
    for members in partition(pairs, lambda pair: family(pair[0])).values():
        by_gamma = {float(group.first.gamma or 0): row_of[id(group)] for group, _ in members}
        baseline = next((row_of[id(there)] for _, there in members if there), by_gamma.get(0.0))
        if baseline:
            by_gamma.setdefault(0.0, baseline)
        by_gamma = dict(sorted(by_gamma.items()))
        choices = {gamma: row.runs for gamma, row in by_gamma.items()} if len(members) > 1 else {}
        selections = select_gammas(choices, domain)
        first = row_of[id(members[0][0])]
        yield Curve(first.method, first.settings, by_gamma, baseline, selections)


def _percent(fractions: Iterable[float | None]) -> Estimate | None:
    return estimate([100 * value for value in fractions if value is not None])


def _order(row: Row) -> tuple[Any, ...]:
    gamma = (0, 0.0) if row.gamma is None else (1, row.gamma)
    return (
        not row.is_baseline and row.label != ERM,
        row.method.casefold(),
        gamma,
        order_of_settings(row.settings),
    )


def _order_of_curve(curve: Curve) -> tuple[Any, ...]:
    return curve.method.casefold(), order_of_settings(curve.settings)
