"""How the jobs of a sweep ended: all are seen, and those without a result are named at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.messages import one_line
from fishr_exp.core.errors import TakenError, UnfinishedError
from fishr_exp.runs.content import UnreadableError
from fishr_exp.runs.run_folder import CONFIG, RunFolder

log = logging.getLogger(__name__)

_FAILED = 1  # the exit status of a run that began, and could not continue
_MOST = 10  # failures to name
_GO_ON = ("BasicSweeper", "SharingSweeper")  # which launch all runs, whatever one comes to
_ONLY = "share_steps=only"
# What a sweep adds to the words of its jobs.
ADDED = ("sweep_position=", _ONLY)


class Sweep:
    """The sweep that runs in this process.

    Args:
        config: The sweep's configuration; None: there is none.
    """

    def __init__(self, config: DictConfig | None = None) -> None:
        self.folder = Path(config.hydra.sweep.dir) if config else None
        self.fixed: list[str] = list(config.hydra.overrides.task) if config else []
        # A search looks at each failure itself.
        self.goes_on = config is not None and any(
            name in str(config.hydra.sweeper._target_) for name in _GO_ON
        )
        self.looks_again = config is not None and _GO_ON[1] in str(config.hydra.sweeper._target_)
        self.of_a_cluster = config is not None and "submitit" in str(config.hydra.launcher._target_)
        self.lost: list[str] = []  # jobs without a result, and without a record of why
        self.notes: list[str] = []  # to be told once its first run is about to start
        self.status = 0  # of the first job that failed

    def add(self, job: JobReturn, name: str = "") -> None:
        """Note that a job failed, if its run folder does not say so and no other trains it."""
        taken = self.looks_again and isinstance(job._return_value, TakenError)
        if not (taken or self.is_followed(job) or _is_recorded(job)):
            words = [word for word in job.overrides or () if not word.startswith(ADDED)]
            swept = [word for word in words if word not in self.fixed]
            why = one_line(job._return_value) or str(job._return_value)
            self.lost.append(f"  {' '.join([name, *swept]).strip()}: {why}")

    def is_followed(self, job: JobReturn) -> bool:
        """Whether another job trains the run of this one, which was to train shared steps only."""
        return _ONLY in (job.overrides or ()) and _ONLY not in self.fixed and not _is_recorded(job)

    def failures(self) -> list[str]:
        """Name the jobs that ended without a result, and the runs in the folder that failed."""
        return [
            *_named(self.lost, "job", "without a result; the same command tries again:"),
            *_named(
                _failed_runs(self.folder),
                "run",
                f"in {self.folder} failed; retry_failed=true tries again, from the last "
                "checkpoint:",
            ),
        ]


sweep = Sweep()


def begin(config: DictConfig | None = None) -> None:
    """Forget the sweep before; `config` is that of the one that begins, if there is one."""
    global sweep
    sweep = Sweep(config)


def tell_notes() -> None:
    """Tell what is to be known before the first run."""
    while sweep.notes:
        log.info("%s", sweep.notes.pop(0))


def _result(job: JobReturn) -> Any:
    """Return a job's result; continue after the failure of one of many.

    In place of Hydra's, which stops at the first failure, after a line of its own.
    """
    if job.status is JobStatus.COMPLETED:
        return job._return_value
    error = job._return_value
    status = getattr(error, "status", None)
    stopped = isinstance(error, UnfinishedError) and not sweep.of_a_cluster
    if not sweep.goes_on or status is None or stopped:
        raise error
    if sweep.is_followed(job):
        return None
    sweep.status = sweep.status or status
    if status == _FAILED and not sweep.of_a_cluster:  # whose jobs are noted as they end
        sweep.add(job)
    return None


JobReturn.return_value = property(_result, JobReturn.return_value.fset)  # type: ignore[method-assign, assignment, attr-defined]


def _is_recorded(job: JobReturn) -> bool:
    """Whether a failed job is recorded in its run folder."""
    place = job.hydra_cfg and OmegaConf.select(job.hydra_cfg, "hydra.runtime.output_dir")
    folder = place or job.working_dir
    return folder is not None and _has_failed(RunFolder(folder))


def _failed_runs(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    runs = [RunFolder(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))]
    failed = [run for run in runs if _has_failed(run)]
    return [f"  {run.path.name}: {(run.result() or {}).get('error')}" for run in failed]


def _has_failed(folder: RunFolder) -> bool:
    """Whether a run has failed; where its files are damaged, its own message says so."""
    with contextlib.suppress(UnreadableError):
        return folder.state == "failed"
    return False


def _named(lines: Sequence[str], what: str, happened: str) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return [f"{len(lines)} {what}{'s' * (len(lines) != 1)} {happened}", *lines[:_MOST], *more]
