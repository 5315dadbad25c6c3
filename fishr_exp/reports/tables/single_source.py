"""Tables of single-source generalization: trained on one domain, tested on each of the others.

The accuracy of a run is the mean over its test domains. A row's mean and its difference to ERM are
over all source domains, paired by seed. Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.statistics.estimates import Estimate, estimate, mean
from fishr_exp.reports.tables.grouping import (
    Group,
    baselines_of,
    group_runs,
    header,
    labels_of,
    natural,
    network,
    order_of_settings,
    partition,
    shown,
    varying,
)
from fishr_exp.runs.reading import Run

PROTOCOL = "single_source"


@dataclass(frozen=True)
class Source:
    """The runs of a row that were trained on one domain."""

    runs: tuple[Run, ...]  # one per seed
    accuracy: Estimate | None  # over seeds, of the mean over the test domains
    test: Mapping[str, Estimate]  # test domain -> accuracy


@dataclass(frozen=True)
class SourceRow:
    """A method with its settings, on every source domain."""

    label: str
    method: str
    gamma: float | None
    settings: Mapping[str, str]
    sources: Mapping[str, Source]  # by source domain, of which there may be fewer than columns
    mean: Estimate | None  # over the seeds that all source domains have
    difference: Estimate | None  # to ERM, over the seeds that both have everywhere
    is_baseline: bool
    selected_by_test_domain: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of its runs."""
        return tuple(sorted({run.seed for of in self.sources.values() for run in of.runs}))


@dataclass(frozen=True)
class SingleSource:
    """All rows of one dataset and model."""

    dataset: str
    model: str | None  # None where it varies; it is then among the settings
    domains: tuple[str, ...]  # those that were trained or tested on, in the dataset's order
    setting_names: tuple[str, ...]
    rows: tuple[SourceRow, ...]
    repeats: tuple[Run, ...]  # not counted, since their row already has the seed
    partial: tuple[Run, ...]  # not counted, since they do not test all other domains

    @property
    def sources(self) -> tuple[str, ...]:
        """The source domains of its runs."""
        return tuple(d for d in self.domains if any(d in row.sources for row in self.rows))

    @property
    def title(self) -> str:
        """A short description."""
        title = f"{self.dataset}; trained on one domain, tested on the others"
        return title if self.model is None else f"{title}; model {self.model}"


def build_single_source_tables(runs: Iterable[Run]) -> list[SingleSource]:
    """Build one table per dataset, of its runs with a single training domain.

    Raises:
        ConfigError: If there is no such run.
    """
    single = [run for run in runs if len(run.training_domains) == 1]
    if not single:
        raise ConfigError(
            "--protocol",
            PROTOCOL,
            "no run was trained on a single domain",
            "start some with fishr-exp -m experiment=single_source_digits, or leave --protocol out"
            " for a table of all runs",
        )
    return [_table(of) for _, of in sorted(partition(single, lambda run: run.dataset).items())]


def _table(runs: Sequence[Run]) -> SingleSource:
    domains = _domains(runs)
    partial = [run for run in runs if {*run.training_domains, *run.test_domains} != {*domains}]
    whole = [run for run in runs if run not in partial]
    groups: list[tuple[str, Group, Group | None]] = []  # source domain, runs, their baseline
    repeats: list[Run] = []
    for source, here in partition(whole, lambda run: run.training_domains[0]).items():
        found, again = group_runs(here)
        repeats += again
        groups += [(source, g, b) for g, b in zip(found, baselines_of(found), strict=True)]
    every = [group for _, group, _ in groups]
    names, labels = varying(every), labels_of(every)
    keyed = partition(
        zip(groups, labels, strict=True),
        lambda pair: (pair[1], pair[0][1].first.gamma, *shown(pair[0][1], names).values()),
    )
    sources = [d for d in domains if any(d == source for source, _, _ in groups)]
    rows = [
        _row(members[0][1], [group for group, _ in members], names, sources)
        for members in keyed.values()
    ]
    models = {network(run) for run in whole}
    return SingleSource(
        dataset=runs[0].dataset,
        model=models.pop() if len(models) == 1 else None,
        domains=domains,
        setting_names=tuple(header(name) for name in names),
        rows=tuple(sorted(rows, key=_order)),
        repeats=tuple(repeats),
        partial=tuple(partial),
    )


def _row(
    label: str,
    members: Sequence[tuple[str, Group, Group | None]],
    names: Sequence[str],
    sources: Sequence[str],
) -> SourceRow:
    first = members[0][1]
    by_source = {source: _accuracies(group) for source, group, _ in members}
    own = _over_sources(by_source, sources)
    base = {s: _accuracies(baseline) for s, _, baseline in members if baseline is not None}
    there = _over_sources(base, sources)
    return SourceRow(
        label=label,
        method=first.first.method,
        gamma=first.first.gamma,
        settings=shown(first, names),
        sources={
            source: Source(
                group.runs,
                estimate([*_accuracies(group).values()]),
                {domain: e for domain in group.first.test_domains if (e := _tested(group, domain))},
            )
            for source, group, _ in members
        },
        mean=estimate([*own.values()]),
        difference=estimate([own[seed] - there[seed] for seed in own if seed in there]),
        is_baseline=first.first.is_erm,
        selected_by_test_domain=any(
            run.selected_by_test_domain for _, group, _ in members for run in group.runs
        ),
    )


def _accuracies(group: Group) -> dict[int, float]:
    """Return by seed the mean over the test domains, of runs that have all of them."""
    found = {}
    for run in group.runs:
        values = [run.test_accuracy.get(domain) for domain in run.test_domains]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found[run.seed] = 100 * mean(known)
    return found


def _over_sources(
    by_source: Mapping[str, Mapping[int, float]], sources: Sequence[str]
) -> dict[int, float]:
    """Return by seed the mean over all source domains, for the seeds that all of them have."""
    if {*by_source} != {*sources}:
        return {}
    seeds = set.intersection(*({*of} for of in by_source.values()))
    return {seed: mean([of[seed] for of in by_source.values()]) for seed in sorted(seeds)}


def _tested(group: Group, domain: str) -> Estimate | None:
    values = [run.test_accuracy.get(domain) for run in group.runs]
    return estimate([100 * value for value in values if value is not None])


def _domains(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return all domains in the order of the dataset, or else of their names."""
    named = {d for run in runs for d in (*run.training_domains, *run.test_domains)}
    recorded = dict.fromkeys(d for run in runs for d in run.domains if d in named)
    return (*recorded, *sorted(named - {*recorded}, key=natural))


def _order(row: SourceRow) -> tuple[object, ...]:
    gamma = (0, 0.0) if row.gamma is None else (1, row.gamma)
    return not row.is_baseline, row.label.casefold(), gamma, order_of_settings(row.settings)
