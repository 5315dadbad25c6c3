"""Launches the runs of a sweep: one after another, or in waves where a launcher starts several.

A run that another process trains is passed over; the command looks again until all are done, or
have failed. Runs that share steps wait for the one that trains them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from fishr_exp.configuration.sweeping.progress import Progress, is_taken
from fishr_exp.configuration.sweeping.runs import SweptRun, leaders
from fishr_exp.core.errors import ConfigError, TakenError
from fishr_exp.runs.names import TRUNKS

log = logging.getLogger(__name__)

Launch = Callable[[Sequence[SweptRun], Sequence[str]], Sequence[JobReturn]]
"""Launches runs with additional words, and returns what each came to."""

_PAUSE = 1.0  # seconds before another look at runs that others train


def one_by_one(todo: Sequence[SweptRun], launch: Launch, progress: Progress) -> None:
    """Make one run after another in this process."""
    pending = list(todo)
    while pending := _not_made(pending, progress):
        run = next((run for run in pending if _is_free(run, pending)), None)
        if run is None:
            _wait(pending, progress)
            continue
        if _attempt([run], launch, (), progress):
            pending.remove(run)
            pending = _without_mistakes(pending, [run])


def _without_mistakes(pending: Sequence[SweptRun], tried: Sequence[SweptRun]) -> list[SweptRun]:
    """Leave out runs to be trained that would be refused as those were that have been tried."""
    others = [run for run in pending if not any(map(run.has_mistake_of, tried))]
    if count := len(pending) - len(others):
        which = "1 more run has" if count == 1 else f"{count} more runs have"
        log.error("%s the same setting, and will not be started", which)
    return others


def in_waves(
    todo: Sequence[SweptRun], launch: Launch, progress: Progress, most: int | None = None
) -> None:
    """Make several runs at a time; shared steps come first, as a wave of their own.

    Args:
        todo: The runs, in order.
        launch: Launches several.
        progress: Tells how far the sweep is.
        most: Runs in a wave, at most; None: all.
    """
    pending = list(todo)
    tried: set[Path] = set()  # trunks; if one is missing, the runs go without
    while pending := _not_made(pending, progress):
        first = [run for run in leaders(pending) if trunk_of(run) not in tried]
        if first := [run for run in first if not is_taken(run.folder)][:most]:
            tried |= {trunk_of(run) for run in first}
            log.info("training the steps that runs share: %d runs stop after them", len(first))
            made = _attempt(first, launch, ("share_steps=only",), progress)
            failed = [run for run in made if run.has_failed]
            pending = _without_mistakes([run for run in pending if run not in failed], made)
            continue
        free = [run for run in pending if _is_free(run, pending)]
        if not free:
            _wait(pending, progress)
            continue
        wave = free[:most]
        made = _attempt(wave, launch, (), progress)
        pending = _without_mistakes([run for run in pending if run not in made], made)


def trunk_of(run: SweptRun) -> Path:
    """Return the folder of the steps that a run shares."""
    assert run.trunk is not None
    return run.trunk.folder


def _attempt(
    runs: Sequence[SweptRun], launch: Launch, words: Sequence[str], progress: Progress
) -> list[SweptRun]:
    """Launch runs; return those that were attempted, and not found taken.

    Raises:
        Exception: What ends the sweep, such as a stop; the failure of a run does not.
    """
    progress.ours(runs)
    return finish(runs, launch(runs, words), progress, only_shared=bool(words))


def finish(
    runs: Sequence[SweptRun],
    returns: Sequence[JobReturn],
    progress: Progress,
    *,
    only_shared: bool = False,
) -> list[SweptRun]:
    """Take note of what launched runs came to; return those that were not found taken.

    Args:
        runs: The runs.
        returns: What their jobs returned.
        progress: Tells how far the sweep is.
        only_shared: Whether they were to train shared steps only.

    Raises:
        Exception: What ends the sweep, such as a stop; the failure of a run does not.
    """
    attempted = []
    for run, end in zip(runs, returns, strict=True):
        if end.status is JobStatus.FAILED and isinstance(end._return_value, TakenError):
            progress.not_ours(run)
            continue
        attempted.append(run)
        run.mistake = end._return_value if isinstance(end._return_value, ConfigError) else None
        made_here = end.return_value  # raises what ends the sweep
        run.from_scratch = run.failed_before = False
        if run.to_send and run.has_result:
            progress.sent(run)
        elif made_here is False:  # it was found done
            progress.not_ours(run)
        elif not only_shared:  # else another job is to train it
            progress.lost(run)
    progress.update()
    return attempted


def _wait(pending: Sequence[SweptRun], progress: Progress) -> None:
    """Wait a moment for runs that others train; say so, once for each."""
    taken = [run.folder.name for run in pending if is_taken(run.folder)]
    progress.waiting_for(taken)
    time.sleep(_PAUSE)


def _not_made(pending: Sequence[SweptRun], progress: Progress) -> list[SweptRun]:
    """Return the runs that are still to be trained; others may have trained some meanwhile."""
    left = [run for run in pending if not run.is_done]
    if len(left) < len(pending):
        progress.update()
    return left


def _is_free(run: SweptRun, pending: Sequence[SweptRun]) -> bool:
    """Whether nobody trains the run, or the steps that it shares."""
    if is_taken(run.folder):
        return False
    if run.trunk is None or run.trunk.is_there:
        return True
    with_it = [other for other in pending if other is not run and other.trunk]
    return not any(
        other.trunk.folder == run.trunk.folder
        and other.reached < run.trunk.step
        and is_taken(other.folder)
        for other in with_it
        if other.trunk
    )


def forget_trunks(folder: Path) -> None:
    """Remove the shared steps in a sweep's folder that no run needs any longer."""
    from fishr_exp.training.trunk import Trunk

    for place in (folder / TRUNKS).glob("*"):
        trunk = Trunk(place, 0, {})
        for name in trunk.wanted:
            run = SweptRun((), folder / name, 0)
            if run.has_result or run.has_failed:
                trunk.release(name)
