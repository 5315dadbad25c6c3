"""Which runs of DomainBed's protocol one table may hold: those of one protocol and length.

5,000 and 15,000 steps on DomainNet are two protocols, and so are `paper_2022` and
`domainbed_main`. Tables of each stand one after another; none mixes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fishr_exp.core.errors import ConfigError
from fishr_exp.reports.published import DOMAIN_NET, same_steps
from fishr_exp.runs.history import History

PROTOCOL = "domainbed"
# A protocol that is another one on all datasets but DomainNet.
ELSEWHERE = {"domainbed_15000": "paper_2022"}


class Regime(NamedTuple):
    """What runs that one table may hold have in common."""

    protocol: str  # the preset's name and digest; empty: outside the presets, or imported
    steps: int | None  # of training; None: not known

    @property
    def name(self) -> str:
        """The preset's name."""
        return self.protocol.partition(" ")[0]

    @property
    def label(self) -> str:
        """What the title of a table says where there are several."""
        name = f"protocol {self.protocol}" if self.protocol else "no protocol of ours"
        return name if self.steps is None else f"{name}, {self.steps:,} steps"


def by_regime(runs: Iterable[History]) -> dict[Regime, list[History]]:
    """Split the runs of one dataset.

    Imported runs, and runs outside the presets, are with those of the only protocol of as many
    steps, and else by themselves; where their number of steps is not known, it fits all.
    """
    found: dict[Regime, list[History]] = {}
    others = []
    for run in runs:
        if run.protocol:
            found.setdefault(Regime(run.protocol, run.steps), []).append(run)
        else:
            others.append(run)
    presets = list(found)
    for run in sorted(others, key=lambda run: run.steps is None):  # those not known come last
        fitting = [there for there in presets if _fits(there.steps, run.steps)]
        own = [there for there in found if not there.protocol and _fits(there.steps, run.steps)]
        candidates = fitting if len(fitting) == 1 else own
        there = candidates[0] if candidates else Regime("", run.steps)
        found.setdefault(there, []).append(run)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def of_averages(variants: Mapping[str, Sequence[Regime]]) -> dict[Regime, dict[str, Regime]]:
    """Return which regime of each dataset a table of averages may hold, by the table's own.

    A preset has one table, whose datasets may differ in their steps; where a dataset has runs of
    several regimes of one preset, a table for each number of steps. A dataset that has several of
    one preset and number of steps is in none.

    Args:
        variants: The regimes of each dataset.
    """
    pairs = [(dataset, regime) for dataset, regimes in variants.items() for regime in regimes]
    names = [(dataset, regime.name) for dataset, regime in pairs]
    several = {name for dataset, name in names if names.count((dataset, name)) > 1}
    tables: dict[Regime, dict[str, Regime]] = {}
    for dataset, regime in pairs:
        own = Regime(regime.name, regime.steps if regime.name in several else None)
        alike = [r for r in variants[dataset] if (r.name, r.steps) == (regime.name, regime.steps)]
        if len(alike) == 1:
            tables.setdefault(own, {})[dataset] = regime
    _join_the_others(tables)
    for own, table in tables.items():
        base = tables.get(Regime(ELSEWHERE.get(own.name, ""), None), {})
        if own.name in ELSEWHERE:
            table |= {d: r for d, r in base.items() if d not in table and d != DOMAIN_NET}
    return dict(sorted(tables.items(), key=lambda item: _order(item[0])))


def _join_the_others(tables: dict[Regime, dict[str, Regime]]) -> None:
    """Add datasets that have runs outside the presets only to the averages of the only preset."""
    presets, outside = [own for own in tables if own.protocol], Regime("", None)
    if len(presets) != 1 or outside not in tables:
        return
    there, more = tables[presets[0]], tables[outside]
    fit = all(any(_fits(r.steps, other.steps) for r in there.values()) for other in more.values())
    if fit and not {*more} & {*there}:
        there |= tables.pop(outside)


def unrepeated(histories: Iterable[History]) -> tuple[list[History], list[History]]:
    """Return the runs of one regime without repeats, and the repeats.

    Raises:
        ConfigError: If a repeat has different settings, so that it is unclear which one to count.
    """
    first: dict[tuple[object, ...], History] = {}
    repeats = []
    for run in histories:
        there = first.setdefault(run.key, run)
        if there is run:
            continue
        keys = [k for k in {**there.settings, **run.settings} if _value(there, k) != _value(run, k)]
        if keys:
            raise _conflict(there, run, keys[0])
        repeats.append(run)
    return list(first.values()), repeats


def _conflict(there: History, run: History, key: str) -> ConfigError:
    """Return the error for two runs at one place of the protocol that differ in `key`."""
    before, here = _value(there, key), _value(run, key)
    if there.in_protocol and run.in_protocol:
        return ConfigError(
            "--protocol",
            PROTOCOL,
            f"{run.path} is {run.method} on {run.dataset}, trial {run.trial_seed}, hparams_seed"
            f" {run.hparams_seed}, and so is {there.path}, with another {key} ({before} there,"
            f" {here} here)",
            "pass a folder with the runs of one sweep, or count one value: --where KEY=VALUE",
        )
    return ConfigError(
        "--protocol",
        PROTOCOL,
        f"these runs are a sweep over {key} ({before} in {there.path}, {here} in {run.path}),"
        " outside DomainBed's protocol, where a method has one run for each trial and hparams_seed",
        "leave --protocol out: the table then has a row for each setting",
    )


def about(parts: Mapping[str, Sequence[History]]) -> Iterable[str]:
    """Say of which protocol the runs of each dataset are, and in what they depart from it."""
    for dataset, runs in parts.items():
        here = [run for run in runs if run.protocol]
        for protocol in dict.fromkeys(run.protocol for run in here):
            yield f"{dataset}: protocol {protocol}."
        # Averaging stands beside the methods' names.
        if departures := sorted({k for run in here for k in run.departures} - {"averaging"}):
            yield f"{dataset}: runs depart from that preset in {', '.join(departures)}."


def _fits(one: int | None, other: int | None) -> bool:
    return one is None or same_steps(one, other)


def _order(regime: Regime) -> tuple[bool, int, str]:
    return not regime.protocol, regime.steps or 0, regime.protocol


def _value(run: History, key: str) -> Any:
    return run.settings.get(key, "absent")
