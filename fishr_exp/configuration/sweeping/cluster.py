"""Sends a sweep through Slurm: shared steps, the runs that depend on them, and the others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from fishr_exp.configuration.sweeping.launching import Launch, finish, in_waves, trunk_of
from fishr_exp.configuration.sweeping.progress import Progress, is_taken
from fishr_exp.configuration.sweeping.runs import SweptRun, leaders


def through_slurm(
    todo: Sequence[SweptRun], launch: Launch, progress: Progress, launcher: Any
) -> None:
    """Submit all runs, and wait for them.

    The runs that train shared steps are an array of jobs that stop after these; those that start
    from them, and these runs themselves, are a second one, which Slurm begins when the first has
    ended, in whatever way. So nothing depends on this process once it has submitted them. The other
    runs are a third one; they join the second where the first and the third at once could be more
    jobs than `array_parallelism`.

    Args:
        todo: The runs, in order.
        launch: Launches several through `launcher`.
        progress: Tells how far the sweep is.
        launcher: Submitit's for Slurm.
    """
    free = [run for run in todo if not is_taken(run.folder)]
    first = leaders(free)
    awaited = {trunk_of(run) for run in first}
    later = [run for run in free if run.trunk and trunk_of(run) in awaited]
    others = [run for run in free if not (run.trunk and trunk_of(run) in awaited)]
    if first and max(len(first), len(later)) + len(others) > _at_once(launcher):
        later, others = free, []
    progress.ours(free)
    with _submitted() as jobs:
        if first:
            launch(first, ("share_steps=only",))
        arrays = sorted({str(job.job_id).partition("_")[0] for job in jobs})
        if later:
            with _after(launcher, arrays):
                launch(later, ())
        if others:
            launch(others, ())
    # Those of the first array have ended before those that depend on it.
    returns = [job.results()[0] for job in jobs[len(first) :]]
    made = {run.position for run in finish([*later, *others], returns, progress)}
    in_waves([run for run in todo if run.position not in made], launch, progress)


def _at_once(launcher: Any) -> int:
    """Return how many jobs of an array may run at once."""
    return int(launcher.params.get("array_parallelism") or sys.maxsize)


@contextlib.contextmanager
def _submitted() -> Iterator[list[Any]]:
    """In the block, let launchers return once their jobs are submitted, which are collected."""
    from submitit.core.core import Job

    jobs: list[Any] = []
    wait = Job.results

    def later(job: Any) -> list[JobReturn]:
        jobs.append(job)
        return [JobReturn(status=JobStatus.UNKNOWN)]

    Job.results = later  # type: ignore[method-assign, assignment]
    try:
        yield jobs
    finally:
        Job.results = wait  # type: ignore[method-assign]


@contextlib.contextmanager
def _after(launcher: Any, arrays: Sequence[str]) -> Iterator[None]:
    """In the block, let a launcher's jobs begin after those of other arrays."""
    given = launcher.params.get("additional_parameters")
    ended = f"afterany:{':'.join(arrays)}"
    own = (given or {}).get("dependency")
    # A list of which one is enough (a?b) takes no other; the arrays waited for it themselves.
    both = f"{own},{ended}" if own and "?" not in str(own) else ended
    launcher.params["additional_parameters"] = {**(given or {}), "dependency": both}
    try:
        yield
    finally:
        launcher.params["additional_parameters"] = given
