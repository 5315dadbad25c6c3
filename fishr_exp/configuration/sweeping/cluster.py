"""Sends a sweep through Slurm: shared steps, the runs that depend on them, and the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from fishr_exp.configuration.sweeping.launching import Launch, finish, in_waves, trunk_of
from fishr_exp.configuration.sweeping.progress import Progress, is_taken
from fishr_exp.configuration.sweeping.runs import SweptRun, leaders


def through_slurm(
    todo: Sequence[SweptRun], launch: Launch, progress: Progress, launcher: Launcher
) -> None:
    """Submit all runs, and wait for them.

    The runs that make shared steps are an array of jobs that stop after these; those that start
    from them are a second one, which Slurm begins when the first has ended, in whatever way. So
    nothing depends on this process once it has submitted them.

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
    others = [run for run in free if run not in later]
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
    returns = [job.results()[0] for job in jobs]
    for run, end in zip(first, returns, strict=False):
        if end.status is JobStatus.FAILED and run.has_failed:
            progress.update()
    finish([*later, *others], returns[len(first) :], progress)
    in_waves([run for run in todo if run not in free], launch, progress)


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
    given = dict(launcher.params.get("additional_parameters") or {})
    if arrays:
        ended = f"afterany:{':'.join(arrays)}"
        own = given.get("dependency")
        depending = {**given, "dependency": f"{own},{ended}" if own else ended}
        launcher.params["additional_parameters"] = depending
    try:
        yield
    finally:
        launcher.params["additional_parameters"] = given
