"""A run as model selection sees it: its place in the protocol, and accuracies at every evaluation.

Read from our run folders, and from the `results.jsonl` files that DomainBed writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fishr_exp.runs.content import (
    UnreadableError,
    anything,
    count,
    fraction,
    integer,
    mapping,
    optional,
    parse_records,
    several,
    take,
    text,
)
from fishr_exp.runs.identity import compared, flatten
from fishr_exp.runs.methods import AVERAGE_OF, ERM, averaging_of
from fishr_exp.runs.reading import Run
from fishr_exp.runs.records import PARTS, Scores, parse_evaluations
from fishr_exp.runs.run_folder import RECORDS, RunFolder

IMPORTED = "results.jsonl"
DOMAINBED = "DomainBed"  # the source of an imported run
NAN = float("nan")
# Our labels of DomainBed's datasets. `colored_mnist` is not among them: that is the IRM setup.
DATASETS = {
    "colored_mnist_domainbed": "ColoredMNIST",
    "rotated_mnist": "RotatedMNIST",
    "vlcs": "VLCS",
    "pacs": "PACS",
    "office_home": "OfficeHome",
    "terra_incognita": "TerraIncognita",
    "domain_net": "DomainNet",
    "sviro": "SVIRO",
    "camelyon17": "WILDSCamelyon",
    "fmow": "WILDSFMoW",
}


class Evaluation(NamedTuple):
    """Accuracies of all domains at one step, as fractions; NaN where nothing was measured."""

    step: int
    train: tuple[float, ...]  # on DomainBed's in-split, 80 % of a domain
    validation: tuple[float, ...]  # on its out-split, 20 %


@dataclass(frozen=True)
class History:
    """A run with its evaluations. Domains are numbered in the dataset's order, as by DomainBed."""

    path: Path
    dataset: str  # DomainBed's name for its own datasets, else our label
    method: str
    trial_seed: int
    hparams_seed: int
    test_domains: frozenset[int]
    domains: tuple[str, ...]  # names of all domains
    evaluations: tuple[Evaluation, ...]  # by ascending step
    settings: Mapping[str, Any] = field(default_factory=dict)  # flat; what else the run was
    in_protocol: bool = True  # False: trial and hparams_seed were not set, see `place`
    protocol: str = ""  # preset and digest, of a run in the protocol
    departures: tuple[str, ...] = ()  # keys in which the run is not as its preset
    done: bool = True  # False: an imported run without DomainBed's mark
    source: str = DOMAINBED  # the option that configured its method, or `DOMAINBED`
    steps: int | None = None  # of training, if it is known
    only_choice: bool = False  # its only evaluation is its result, of whatever step

    @property
    def key(self) -> tuple[object, ...]:
        """What distinguishes a run from all others in a sweep."""
        domains = tuple(sorted(self.test_domains))
        return (self.dataset, self.method, self.trial_seed, self.hparams_seed, domains)


@dataclass
class Histories:
    """What was read."""

    runs: list[History] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)  # file -> what is wrong


def place(config: Mapping[str, Any], seed: int) -> tuple[int, int, bool]:
    """Return trial_seed, hparams_seed, and whether the run is one of DomainBed's protocol.

    A run outside the protocol counts as trial `seed` with the default hyperparameters.
    """
    protocol = config.get("protocol") or {}
    if not protocol.get("name"):
        return seed, 0, False
    return take(protocol, "trial_seed", integer), take(protocol, "hparams_seed", integer), True


def read_histories(root: Path, runs: Iterable[Run]) -> Histories:
    """Read the records of `runs`, and all `results.jsonl` files under `root`.

    Where several options, or DomainBed too, have a method of one name, the option or DomainBed is
    added to it: they are different rows.
    """
    found = Histories()
    for run in runs:
        _read(found, run.path / RECORDS, lambda path, run=run: _own(run, parse_evaluations(path)))
    for folder in sorted(Path(path) for path, _, files in os.walk(root) if IMPORTED in files):
        _read(found, folder / IMPORTED, lambda path: _imported(path.parent, parse_records(path)))
    found.runs = _named_apart(found.runs)
    return found


def _named_apart(runs: Iterable[History]) -> list[History]:
    runs = list(runs)
    sources: dict[str, set[str]] = {}
    for run in runs:
        sources.setdefault(_spelled_alike(run.method), set()).add(run.source)
    shared = {name for name, found in sources.items() if len(found) > 1}
    return [
        replace(run, method=f"{run.method} ({run.source})")
        if _spelled_alike(run.method) in shared
        else run
        for run in runs
    ]


def _spelled_alike(method: str) -> str:
    return "".join(filter(str.isalnum, method.lower()))  # DomainBed writes VREx


def _read(found: Histories, path: Path, build: Any) -> None:
    try:
        history = build(path)
        if not history.evaluations:
            raise ValueError("holds no evaluation")
        steps = [evaluation.step for evaluation in history.evaluations]
        if len(set(steps)) < len(steps):
            raise ValueError("holds a step twice, as if two runs had written to it")
    except UnreadableError as error:
        found.broken[path] = error.allowed
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        found.broken[path] = str(error)
    except KeyError as error:
        found.broken[path] = f"a record lacks {error}"
    else:
        found.runs.append(history)


def _own(run: Run, records: list[dict[str, Any]]) -> History:
    if run.only_choice:
        records = [{**RunFolder(run.path).result_of_done(), "step": run.step}]
    names = list(records[-1]["accuracy"]) if records else []
    evaluations = []
    for record in records:
        accuracy = Scores.from_json(record).by_domain["accuracy"]
        train, validation = (
            tuple(_or_nan(accuracy[name][part]) for name in names) for part in PARTS
        )
        evaluations.append(Evaluation(record["step"], train, validation))
    trial_seed, hparams_seed, in_protocol = place(run.config, run.seed)
    left_out, settings = ("test_domains", "protocol.", "seed"), compared(run.config)
    protocol = run.config.get("protocol") or {}
    method = ERM if run.gamma == 0 and AVERAGE_OF not in run.config else run.method
    return History(
        path=run.path,
        dataset=DATASETS.get(run.dataset, run.dataset),
        method=" + ".join(filter(None, (method, averaging_of(run.config)))),
        trial_seed=trial_seed,
        hparams_seed=hparams_seed,
        test_domains=frozenset(names.index(name) for name in run.test_domains),
        domains=tuple(names),
        evaluations=_by_step(evaluations),
        settings={k: v for k, v in settings.items() if not k.startswith(left_out)},
        in_protocol=in_protocol,
        protocol=f"{protocol['name']} {protocol.get('digest', '')}".strip() if in_protocol else "",
        departures=tuple(protocol.get("departures", ())),
        source=run.option,
        only_choice=run.only_choice,
        steps=take(settings, "total_steps", optional(count), None),
    )


def _imported(folder: Path, records: list[dict[str, Any]]) -> History:
    if not records:
        raise ValueError("holds no evaluation")
    args = take(records[0], "args", mapping(anything))
    if any(record["args"] != args for record in records):
        raise ValueError("holds records of several runs")
    domains = len([key for key in records[0] if re.fullmatch(_OUT, key)])
    accuracy = optional(fraction)
    evaluations = [
        Evaluation(
            take(record, "step", count),
            tuple(_or_nan(take(record, f"env{i}_in_acc", accuracy)) for i in range(domains)),
            tuple(_or_nan(take(record, f"env{i}_out_acc", accuracy)) for i in range(domains)),
        )
        for record in records
    ]
    test_domains = frozenset(take(args, "test_envs", several(count)))
    if not test_domains <= set(range(domains)):
        raise ValueError(f"has test_envs {sorted(test_domains)}, but {domains} domains")
    return History(
        path=folder,
        dataset=take(args, "dataset", text),
        method=take(args, "algorithm", text),
        trial_seed=take(args, "trial_seed", integer),
        hparams_seed=take(args, "hparams_seed", integer),
        test_domains=test_domains,
        domains=tuple(f"env{i}" for i in range(domains)),
        evaluations=_by_step(evaluations),
        settings=flatten({"hparams": json.loads(json.dumps(records[0].get("hparams", {})))}),
        done=(done := (folder / "done").exists()),
        # Where the command does not say it, the last step of a complete run, counted from 0.
        steps=take(args, "steps", optional(count), None)
        or (max(at.step for at in evaluations) + 1 if done else None),
    )


_OUT = r"env\d+_out_acc"


def _by_step(evaluations: Iterable[Evaluation]) -> tuple[Evaluation, ...]:
    return tuple(sorted(evaluations, key=lambda evaluation: evaluation.step))


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value
