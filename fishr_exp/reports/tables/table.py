"""Tables of runs: a row for each method, gamma and setting, averaged over seeds only.

Accuracies are in percent here, differences in percentage points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fishr_exp.reports.statistics.estimates import Estimate, estimate
from fishr_exp.reports.statistics.gamma_selection import SelectedGamma, select_gammas
from fishr_exp.reports.statistics.paired import Paired, compare, holm
from fishr_exp.runs.files import to_json
from fishr_exp.runs.identity import compared
from fishr_exp.runs.methods import AVERAGE_OF, ERM
from fishr_exp.runs.reading import Run

L2 = "trainer.l2"  # the only setting of a method that ERM also has; a method without it has 0

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


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
    rows: Mapping[float, Row]  # by gamma; 0 is ERM's row if the method has no row with gamma 0
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

    @property
    def title(self) -> str:
        """A short description: dataset, test domains and model."""
        domains = "test domain" if len(self.test_domains) == 1 else "test domains"
        title = f"{self.dataset}; {domains} {', '.join(self.test_domains)}"
        return title if self.model is None else f"{title}; model {self.model}"


def build_tables(runs: Iterable[Run]) -> list[Table]:
    """Build one table per dataset and set of test domains, in alphabetical order."""
    parts = _partition(runs, lambda run: (run.dataset, tuple(sorted(run.test_domains))))
    return [_build_table(part) for _, part in sorted(parts.items())]


@dataclass(frozen=True)
class _Group:
    """Runs that differ only in their seed, one of each seed, in the order of their seeds."""

    runs: tuple[Run, ...]
    settings: Mapping[str, Any]  # flat; without seeds that follow the run's

    @property
    def first(self) -> Run:
        return self.runs[0]


def _build_table(runs: list[Run]) -> Table:
    groups, repeats = _group(runs)
    names = _varying(groups)
    test_domains = runs[0].test_domains
    baselines = _baselines(groups)
    labels = _labels(groups)
    rows = _correct(
        [
            _build_row(group, label, _shown(group, names), test_domains, baseline)
            for group, label, baseline in zip(groups, labels, baselines, strict=True)
        ]
    )
    models = {run.model for run in runs}
    return Table(
        dataset=runs[0].dataset,
        model=models.pop() if len(models) == 1 else None,
        test_domains=test_domains,
        setting_names=tuple(_header(name) for name in names),
        rows=tuple(sorted(rows, key=_order)),
        curves=tuple(_curves(groups, baselines, rows, test_domains[0])),
        repeats=tuple(repeats),
    )


def _baselines(groups: Sequence[_Group]) -> list[_Group | None]:
    """Find the baseline of each group: its own method with gamma 0, which is ERM, or else ERM.

    With two matching rows of ERM the baseline is ambiguous, so there is none. A baseline has none.
    """
    erm = _partition((g for g in groups if g.first.is_erm), _base)
    zero = {_family(g): g for g in groups if g.first.gamma == 0}
    found: list[_Group | None] = []
    for group in groups:
        fitting = erm.get(_base(group), [])
        own = zero.get(_family(group)) or (fitting[0] if len(fitting) == 1 else None)
        is_baseline = group.first.is_erm or group.first.gamma == 0
        found.append(None if is_baseline else own)
    return found


def _labels(groups: Sequence[_Group]) -> list[str]:
    """Name each group's row: gamma 0 is ERM, with the method behind it if other rows are, too."""
    zero = {group.first.method for group in groups if group.first.gamma == 0}
    alone = len(zero) == 1 and all(group.first.method != ERM for group in groups)
    return [
        group.first.method
        if group.first.gamma != 0
        else ERM
        if alone
        else f"{ERM} ({group.first.method})"
        for group in groups
    ]


def _build_row(
    group: _Group,
    label: str,
    values: Mapping[str, str],
    test_domains: Sequence[str],
    baseline: _Group | None,
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
        paired=compare(differences) if group.first.gamma else None,
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
    groups: Sequence[_Group],
    baselines: Sequence[_Group | None],
    rows: Sequence[Row],
    domain: str,
) -> Iterable[Curve]:
    """Join the rows that differ only in gamma."""
    row_of = {id(group): row for group, row in zip(groups, rows, strict=True)}
    pairs = [
        pair for pair in zip(groups, baselines, strict=True) if pair[0].first.gamma is not None
    ]
    for family in _partition(pairs, lambda pair: _family(pair[0])).values():
        by_gamma = {float(group.first.gamma or 0): row_of[id(group)] for group, _ in family}
        baseline = next((row_of[id(there)] for _, there in family if there), by_gamma.get(0.0))
        if baseline:
            by_gamma.setdefault(0.0, baseline)
        by_gamma = dict(sorted(by_gamma.items()))
        choices = {gamma: row.runs for gamma, row in by_gamma.items()} if len(family) > 1 else {}
        selections = select_gammas(choices, domain)
        first = row_of[id(family[0][0])]
        yield Curve(first.method, first.settings, by_gamma, baseline, selections)


def _percent(fractions: Iterable[float | None]) -> Estimate | None:
    return estimate([100 * value for value in fractions if value is not None])


def _group(runs: Iterable[Run]) -> tuple[list[_Group], list[Run]]:
    """Group runs by everything except their seed; return repeats of a seed separately."""
    groups: list[_Group] = []
    repeats: list[Run] = []
    for matching in _partition(runs, lambda run: _identity(run, _without_seeds(run))).values():
        # `dataset.seed: ${seed}` follows the run's seed; with another value it is a setting.
        if all(seed == run.seed for run in matching for seed in _inner_seeds(run).values()):
            parts = [(matching, _without_seeds(matching[0]))]
        else:
            pinned = _partition(matching, lambda run: to_json(_inner_seeds(run)))
            parts = [(p, {**_without_seeds(p[0]), **_inner_seeds(p[0])}) for p in pinned.values()]
        for part, values in parts:
            by_seed = _partition(part, lambda run: run.seed)
            groups.append(_Group(tuple(by_seed[seed][0] for seed in sorted(by_seed)), values))
            repeats += [run for same in by_seed.values() for run in same[1:]]
    return groups, repeats


def _identity(run: Run, values: Mapping[str, Any]) -> str:
    return to_json([run.method, run.model, sorted((k, to_json(v)) for k, v in values.items())])


def _without_seeds(run: Run) -> dict[str, Any]:
    values = compared(run.config)
    excluded = {"seed", "test_domains", *_inner_seeds(run)}  # a table has one set of test domains
    return {key: value for key, value in values.items() if key not in excluded}


def _inner_seeds(run: Run) -> dict[str, Any]:
    return {key: v for key, v in compared(run.config).items() if key.endswith(".seed")}


def _base(group: _Group) -> str:
    """Return a key of what a method and ERM share: all settings except the method's own."""
    values = {k: v for k, v in group.settings.items() if not k.startswith("trainer.")}
    values[L2] = _value(group, L2)
    return to_json([group.first.model, sorted((k, to_json(v)) for k, v in values.items())])


def _family(group: _Group) -> str:
    """Return a key of what the groups of one method that differ only in gamma share."""
    values = {k: v for k, v in group.settings.items() if k != "trainer.gamma"}
    names = [group.first.model, group.first.method]
    return to_json([*names, sorted((k, to_json(v)) for k, v in values.items())])


def _varying(groups: Sequence[_Group]) -> list[str]:
    """Return the settings that need a column, so that no two rows look the same.

    A setting that follows from the method (`trainer.*`, but for `L2`, and what an average is of),
    the model's name (`model.*`) or the class that a part of the configuration builds
    (`optimizer.*`) needs none.
    """
    names = ["model"] if len({group.first.model for group in groups}) > 1 else []
    if all(_value(g, "trainer.gamma") in (g.first.gamma, _ABSENT) for g in groups):
        excluded = {"trainer.gamma"}  # has its own column
    else:
        excluded = set()
    for key in dict.fromkeys(key for group in groups for key in group.settings):
        by_label = _partition(groups, lambda group, key=key: _label(group, key))  # type: ignore[misc]
        varies = any(len({to_json(_value(g, key)) for g in part}) > 1 for part in by_label.values())
        if varies and key not in excluded:
            names.append(key)
    return names


def _label(group: _Group, key: str) -> str:
    """Return what the setting `key` may follow from, which the table already shows."""
    if key == L2:
        return ""
    part, _, rest = key.partition(".")
    method = group.first.method
    labels = {"trainer": method, AVERAGE_OF: method, "model": group.first.model}
    if part in labels:
        return labels[part]
    return str(group.settings.get(f"{part}._target_")) if rest != "_target_" else ""


_ABSENT = "–"


def _value(group: _Group, name: str) -> Any:
    if name == "model":
        return group.first.model
    return group.settings.get(name, 0 if name == L2 else _ABSENT)


def _shown(group: _Group, names: Sequence[str]) -> dict[str, str]:
    return {_header(name): _show(name, _value(group, name)) for name in names}


def _header(name: str) -> str:
    # The optimizer is its class; for the model, its name has that column.
    return "optimizer" if name == "optimizer._target_" else name


def _show(name: str, value: object) -> str:
    """Write a setting's value as in an override, and a class by its name.

    A method's class is shown whole: two rows of one name differ in where their classes are.
    """
    if isinstance(value, str):
        is_class = name.endswith("_target_") and name != "trainer._target_"
        return value.rpartition(".")[2] if is_class else value
    return to_json(value)


def _order(row: Row) -> tuple[Any, ...]:
    gamma = (0, 0.0) if row.gamma is None else (1, row.gamma)
    return (not row.is_baseline, row.method, gamma, [_natural(v) for v in row.settings.values()])


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def _partition(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    parts: dict[K, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return parts
