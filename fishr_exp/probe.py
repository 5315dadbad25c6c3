"""A few steps and one evaluation of a run in a folder of its own, to learn what the run costs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fishr_exp.contracts import Domain, Domains, Minibatch
from fishr_exp.results.run_folder import RECORDS, write_atomically
from fishr_exp.run import run

WARM, BEFORE, AFTER = 2, 3, 3  # steps: not counted, before the penalty acts, and when it does
SAMPLES = 1000  # of each domain, at least, in the evaluation


@dataclass(frozen=True)
class Costs:
    """What the parts of a run cost on this machine, in seconds and bytes."""

    start: float  # to build all parts
    step_before: float  # before `anneal_steps`, and with gamma 0
    step: float  # when the penalty acts; ERM's only step
    evaluation: float  # with the checkpoints that are written
    last_evaluation: float  # of all parts
    files: int  # of a run with one evaluation
    record: int  # of each further evaluation

    def seconds(self, first: int, steps: int, anneal_steps: int, evaluations: int) -> float:
        """What a run costs from step `first` to its end; `anneal_steps` of ERM is 0."""
        before = max(0, min(anneal_steps, steps) - first)
        return (
            self.start
            + before * self.step_before
            + (steps - first - before) * self.step
            + evaluations * self.evaluation
            + self.last_evaluation
        )

    def bytes(self, evaluations: int) -> int:
        """What a run leaves on the disk."""
        return self.files + self.record * (evaluations - 1)


class _EnoughError(Exception):
    """The evaluation is over."""


class _StopWatch:
    """In the place of a tracker: stops the run at its first evaluation."""

    def __init__(self, count: int) -> None:
        self.count = count  # of steps before the evaluation
        self.steps: list[float] = []  # when each began
        self.end = 0.0

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def sync(self) -> None:
        if len(self.steps) < self.count:
            return  # a checkpoint for a signal, which is obeyed next
        self.end = time.perf_counter()
        raise _EnoughError

    def finish(self, status: str) -> None: ...


def probe(arguments: Mapping[str, Any], labels: Mapping[str, str]) -> Costs:
    """Measure the run that `arguments` describe; its folder and its tracker are left alone.

    Args:
        arguments: Keyword arguments of `run`, as `config.arguments` gives them.
        labels: What the parts are called: `dataset`, `model`, `trainer`.

    Raises:
        ConfigError: If the run cannot be started.
        TrainingError: If it cannot go on.
    """
    # The first optimizer of a process imports for seconds; a sweep pays for that once.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()
    began = time.perf_counter()
    domains = arguments["dataset"]()
    share = _share(arguments, domains)
    few = _few(arguments, domains)
    keywords = arguments["trainer"].keywords
    after = max(AFTER, keywords.get("penalty_interval", 1))
    steps = WARM + BEFORE + after + 1
    watch = _StopWatch(steps)
    shortened = {
        **arguments,
        "dataset": lambda: few,
        "trainer": _timed(arguments["trainer"], watch),
        "tracker": lambda _: watch,
        "checkpoint_every": None,
        "epochs": 1,
        "steps_per_epoch": steps,
        "total_steps": None,
    }
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(_EnoughError):
                run(**shortened, folder=Path(folder) / "probe", labels=labels)
            files = {f.name: f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()}
            saving = _seconds_to_write(Path(folder), files)
    finally:
        logging.disable(logging.NOTSET)
    starts = watch.steps[:steps]
    lengths = [later - earlier for earlier, later in itertools.pairwise(starts)]
    step = sum(lengths[-after:]) / after
    reading = max(0.0, watch.end - starts[-1] - step - saving) * _samples(domains) / _samples(few)
    return Costs(
        start=starts[0] - began,
        step_before=sorted(lengths[WARM : WARM + BEFORE])[BEFORE // 2],
        step=step,
        evaluation=reading + saving,
        last_evaluation=reading / share,
        files=sum(files.values()),
        record=files.get(RECORDS, 0),
    )


class _Few:
    """The first samples of a domain."""

    def __init__(self, domain: Domain, count: int) -> None:
        self.name = domain.name
        self._domain = domain
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        return self._domain.read(indices, augment)


def _few(arguments: Mapping[str, Any], domains: Domains) -> Domains:
    """Return the domains with the samples that the steps need, and enough to time reading them."""
    batch_size = arguments["batch_size"]
    if batch_size is None:
        return domains
    # Twice the minibatch: a split of so few samples may be a little off its fraction.
    least = max(SAMPLES, int(2 * batch_size / (1 - arguments["holdout_fraction"])))
    by_name: dict[str, Domain] = {
        name: _Few(d, min(len(d), least)) for name, d in domains.by_name.items()
    }
    return dataclasses.replace(domains, by_name=by_name)


def _samples(domains: Domains) -> int:
    return sum(len(domain) for domain in domains.by_name.values())


def _seconds_to_write(folder: Path, files: Mapping[str, int]) -> float:
    """Return how long the checkpoints of one evaluation take to write there."""
    began = time.perf_counter()
    size = sum(size for name, size in files.items() if name.endswith(".pt"))
    write_atomically(folder / "same", bytes(size))
    return time.perf_counter() - began


def _timed(trainer: functools.partial[Any], watch: _StopWatch) -> Callable[..., Any]:
    """Return what makes the method so that it notes when each step begins."""
    early = {"anneal_steps": WARM + BEFORE} if "anneal_steps" in trainer.keywords else {}

    def make(**keywords: Any) -> Any:
        method = trainer(**{**early, **keywords})
        objective = method.objective

        def noting(*batch: Any) -> Any:
            watch.steps.append(time.perf_counter())
            return objective(*batch)

        method.objective = noting
        return method

    return make


def _share(arguments: Mapping[str, Any], domains: Domains) -> float:
    """Return the share of all samples that an evaluation reads."""
    sizes = [len(domain) for domain in domains.by_name.values()]
    validation = sum(int(arguments["holdout_fraction"] * size) for size in sizes)
    return 1.0 if arguments["evaluate_train"] or not validation else validation / sum(sizes)
