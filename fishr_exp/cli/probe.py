"""A few steps and one evaluation of a run, in a folder of its own, to learn what the run costs."""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fishr_exp.runs.environment import environment
from fishr_exp.runs.records import PARTS, Evaluation, Scores
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.checkpoint import Checkpoints, Interval
from fishr_exp.training.early_stopping import Verdict
from fishr_exp.training.loop import fit
from fishr_exp.training.prepare import prepare
from fishr_exp.training.prepared import Prepared
from fishr_exp.training.signals import Signals

WARM, BEFORE, AFTER = 2, 3, 3  # steps: not counted, before the penalty acts, and when it does
SAMPLES = 1000  # of each part, at most, in the evaluation


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


def probe(arguments: Arguments) -> Costs:
    """Measure the run that `arguments` describe; its folder and its tracker are left alone.

    The run is prepared as it would be, so its loaders read as they will, by threads or processes.

    Raises:
        ConfigError: If the run cannot be started.
        TrainingError: If it cannot continue.
    """
    # The first optimizer of a process imports for seconds; a sweep pays for that once.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()
    keywords = arguments.trainer.keywords  # type: ignore[attr-defined]
    after = max(AFTER, keywords.get("penalty_interval", 1))
    steps = WARM + BEFORE + after + 1
    starts: list[float] = []  # of the steps
    began = time.perf_counter()
    prepared = prepare(
        replace(
            arguments,
            trainer=_noting(arguments.trainer, starts),
            epochs=None,
            total_steps=steps,
            steps_per_epoch=steps,
        )
    )
    samples, few = _samples(prepared), _with_few_samples(prepared)
    with tempfile.TemporaryDirectory() as folder:
        evaluated, saved, sizes = _run(few, Path(folder) / "probe", steps)
    lengths = [later - earlier for earlier, later in itertools.pairwise(starts)]
    reading = evaluated * samples / _samples(few)
    share = sum(len(prepared.parts[n][p]) for n in prepared.parts for p in prepared.evaluated)
    return Costs(
        start=starts[0] - began,
        step_before=sorted(lengths[WARM : WARM + BEFORE])[BEFORE // 2],
        step=sum(lengths[-after:]) / after,
        evaluation=reading * share / samples + saved,
        last_evaluation=reading,
        files=sum(sizes),
        record=sizes[0],
    )


def _noting(trainer: Callable[..., Any], starts: list[float]) -> Callable[..., Any]:
    """Return what makes the trainer so that it notes when each step begins."""
    early = {"anneal_steps": WARM + BEFORE} if "anneal_steps" in trainer.keywords else {}  # type: ignore[attr-defined]

    @functools.wraps(trainer)
    def make(**keywords: Any) -> Any:
        made = trainer(**{**early, **keywords})
        objective = made.objective

        def noting(*batch: Any) -> Any:
            starts.append(time.perf_counter())
            return objective(*batch)

        made.objective = noting
        return made

    return make


def _samples(prepared: Prepared) -> int:
    return sum(len(indices) for parts in prepared.parts.values() for indices in parts.values())


def _with_few_samples(prepared: Prepared) -> Prepared:
    """Return the run with evaluations of few samples; its minibatches stay as they are."""
    parts = {
        name: {part: indices[:SAMPLES] for part, indices in of.items()}
        for name, of in prepared.parts.items()
    }
    return replace(prepared, parts=parts)


def _run(prepared: Prepared, folder: Path, steps: int) -> tuple[float, float, list[int]]:
    """Make the steps, one evaluation and its checkpoints.

    Returns:
        Seconds of an evaluation of all parts, seconds of what comes with it whatever its size
        (statistics of averaged weights, checkpoints), and the sizes of what a run writes, that of
        a record first.
    """
    training, signals = prepared.training, Signals()
    seconds = {"averaging": 0.0, "evaluation": 0.0, "saving": 0.0}
    with RunFolder(folder) as run_folder:
        run_folder.open(prepared.arguments.config)
        run_folder.write_environment(environment("cpu", torch.get_num_threads()))
        run_folder.checkpoints.mkdir()
        checkpoints = Checkpoints(run_folder.checkpoints, {})

        def evaluate() -> tuple[Scores, None]:
            began = time.perf_counter()
            model = prepared.averaged(signals)
            averaged = time.perf_counter()
            scores = prepared.scores(prepared.count(model, PARTS, signals))
            seconds["evaluation"] = time.perf_counter() - averaged
            seconds["averaging"] = averaged - began
            return scores, None

        def record(evaluation: Evaluation, verdict: Verdict) -> None:
            del verdict
            run_folder.append(evaluation.to_json())

        def save() -> None:
            began = time.perf_counter()
            checkpoints.save_best({"step": training.step, "model": training.model.state_dict()})
            checkpoints.save(training.state_dict())
            seconds["saving"] = time.perf_counter() - began

        fit(
            training,
            prepared.loaders(),
            evaluate,
            record,
            save,
            Interval(None),
            signals,
            total_steps=steps,
            steps_per_epoch=steps,
            title="estimate",
        )
        written = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.name: path.stat().st_size for path in written}
    first = sizes.pop("records.jsonl")
    fixed = seconds["averaging"] + seconds["saving"]
    return seconds["evaluation"], fixed, [first, *sizes.values()]
