"""Runs that differ only in their seed: which settings distinguish rows, and what is compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fishr_exp.runs.files import to_json
from fishr_exp.runs.methods import AVERAGE_OF, ERM, averaging_called
from fishr_exp.runs.reading import Run

L2 = "trainer.l2"  # the only setting of a method that ERM also has; a method without it has 0

ABSENT = "–"  # in the place of a setting that a row lacks

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, one of each seed, in the order of their seeds."""

    runs: tuple[Run, ...]
    settings: Mapping[str, Any]  # flat; without seeds that follow the run's

    @property
    def first(self) -> Run:
        return self.runs[0]


def baselines_of(groups: Sequence[Group]) -> list[Group | None]:
    """Find the baseline of each group: its own method with gamma 0, which is ERM, or else ERM.

    If there is no ERM, another method's gamma 0 takes its place. With two matching rows of ERM the
    baseline is ambiguous, so there is none. A baseline has none.
    """
    erm = partition((g for g in groups if g.first.is_erm), _base)
    zeros = [g for g in groups if g.first.gamma == 0]
    zero = {family(g): g for g in zeros}
    erm = partition(zeros, _base) | erm
    found: list[Group | None] = []
    for group in groups:
        fitting = erm.get(_base(group), [])
        own = zero.get(family(group)) or (fitting[0] if len(fitting) == 1 else None)
        is_baseline = group.first.is_erm or group.first.gamma == 0
        found.append(None if is_baseline else own)
    return found


def labels_of(groups: Sequence[Group]) -> list[str]:
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


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[Run]]:
    """Group runs by everything except their seed; return repeats of a seed separately."""
    groups: list[Group] = []
    repeats: list[Run] = []
    for matching in partition(runs, lambda run: _identity(run, _without_seeds(run))).values():
        # `dataset.seed: ${seed}` follows the run's seed; with another value it is a setting.
        if all(seed == run.seed for run in matching for seed in _inner_seeds(run).values()):
            parts = [(matching, _without_seeds(matching[0]))]
        else:
            pinned = partition(matching, lambda run: json.dumps(_inner_seeds(run)))
            parts = [(p, {**_without_seeds(p[0]), **_inner_seeds(p[0])}) for p in pinned.values()]
        for part, values in parts:
            by_seed = partition(part, lambda run: run.seed)
            groups.append(Group(tuple(by_seed[seed][0] for seed in sorted(by_seed)), values))
            repeats += [run for same in by_seed.values() for run in same[1:]]
    return groups, repeats


def _identity(run: Run, values: Mapping[str, Any]) -> str:
    return _key([run.method, run.model], values)


def _key(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return a text that is the same for equal names and settings only."""
    return json.dumps([*names, sorted(values.items())])  # no two keys are equal, nor compared


def _without_seeds(run: Run) -> dict[str, Any]:
    excluded = {"seed", "test_domains"}  # a table has one set of test domains
    return {
        key: value
        for key, value in run.settings.items()
        if key not in excluded and not key.endswith(".seed")
    }


def _inner_seeds(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key.endswith(".seed")}


def _base(group: Group) -> str:
    """Return a key of what a method and ERM share: all settings except the method's own."""
    values = {k: v for k, v in group.settings.items() if not k.startswith("trainer.")}
    values[L2] = _value(group, L2)
    return _key([group.first.model], values)


def family(group: Group) -> str:
    """Return a key of what the groups of one method that differ only in gamma share."""
    values = {k: v for k, v in group.settings.items() if k != "trainer.gamma"}
    return _key([group.first.model, group.first.method], values)


def varying(groups: Sequence[Group]) -> list[str]:
    """Return the settings that need a column, so that no two rows look the same.

    A setting that follows from the method (`trainer.*`, but for `L2`, and what an average is of),
    the model's name (`model.*`) or the class that a part of the configuration builds
    (`optimizer.*`) needs none.
    """
    names = ["model"] if len({network(group.first) for group in groups}) > 1 else []
    if all(_value(g, "trainer.gamma") in (g.first.gamma, ABSENT) for g in groups):
        excluded = {"trainer.gamma"}  # has its own column
    else:
        excluded = set()
    for key in dict.fromkeys(key for group in groups for key in group.settings):
        if len(_values(groups, key)) == 1:
            continue
        by_label = partition(groups, lambda group, key=key: _label(group, key))  # type: ignore[misc]
        varies = any(
            len({json.dumps(_value(g, key)) for g in part}) > 1 for part in by_label.values()
        )
        if varies and key not in excluded:
            names.append(key)
    return names


def _label(group: Group, key: str) -> str:
    """Return what the setting `key` may follow from, which the table already shows."""
    if key == L2:
        return ""
    part, _, rest = key.partition(".")
    method = group.first.method
    labels = {"trainer": method, AVERAGE_OF: method, "model": network(group.first)}
    if part in labels:
        return labels[part]
    return str(group.settings.get(f"{part}._target_")) if rest != "_target_" else ""


def network(run: Run) -> str:
    """Name the network of a run: its option, or the network's own name in the option's library."""
    name = run.settings.get("model.name")
    return str(name) if name and run.model == run.settings.get("model.library") else run.model


def _value(group: Group, name: str) -> Any:
    if name == "model":
        return network(group.first)
    return group.settings.get(name, 0 if name == L2 else ABSENT)


def _values(groups: Iterable[Group], key: str) -> set[str]:
    return {json.dumps(_value(group, key)) for group in groups}


def shown(group: Group, names: Sequence[str]) -> dict[str, str]:
    """Return the values of settings, by what heads their columns."""
    return {header(name): _show(name, _value(group, name)) for name in names}


def header(name: str) -> str:
    """Return what heads the column of a setting."""
    # These are their classes; for the model, its name has that column.
    part = name.removesuffix("._target_")
    return part if part in ("optimizer", "averaging", "scheduler") else name


def _show(name: str, value: object) -> str:
    """Write a setting's value as in an override, and a class by its name.

    A method's class is shown whole: two rows of one name differ in where their classes are.
    """
    if isinstance(value, str):
        if name == "averaging._target_":
            return averaging_called(value)
        is_class = name.endswith("_target_") and name != "trainer._target_"
        return value.rpartition(".")[2] if is_class else value
    return to_json(value)


def natural(text: str) -> tuple[int, float, str]:
    """Return a key by which numbers come before texts, and are in their order."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def order_of_settings(settings: Mapping[str, str]) -> list[tuple[bool, tuple[int, float, str]]]:
    """Return a key by which a row without a setting comes first."""
    return [(value != ABSENT, natural(value)) for value in settings.values()]


def partition(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items by a key, in their order."""
    parts: dict[K, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return parts
