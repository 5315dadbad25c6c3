"""What the command's own process does: handle signals, name the sweep, report what failed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fishr_exp.configuration import (  # noqa: F401 - before anything is composed or written
    full_disk,
    outcomes,
    secrecy,
    several,
)
from fishr_exp.configuration.binding import check_output_dir
from fishr_exp.configuration.messages import before_the_run, one_line
from fishr_exp.core.errors import ConfigError, Stopped, UnfinishedError
from fishr_exp.core.stopping import (
    STOPPING,
    begin_job_process,
    leave_closed_terminal,
    starting_jobs,
)
from fishr_exp.runs.run_folder import RunFolder

_command = 0  # the number of the command's own process; a launcher may start others
_signal = 0  # that the command was stopped by
_absent: list[Path] = []  # folders that the command finds absent; Hydra makes them


@contextlib.contextmanager
def handling_signals() -> Iterator[None]:
    """In the block, let Ctrl-C, SIGTERM and SIGHUP raise `Stopped`, and note which it was.

    Libraries turn what is raised into errors of their own; `stopped_by` returns which it was.
    """
    global _command, _signal
    _command, _signal = os.getpid(), 0
    outcomes.begin()
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stopped_by() -> int:
    """Return the number of the signal that stopped the command; 0: none."""
    return _signal


def is_command() -> bool:
    """Whether this is the command's own process, and none that a launcher has started."""
    return os.getpid() == _command


def jobs_go_on() -> bool:
    """Whether the sweep's jobs are a cluster's, which do not end with the command."""
    return outcomes.sweep.of_a_cluster


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    global _signal
    _signal = number
    leave_closed_terminal()
    raise Stopped(number)


@contextlib.contextmanager
def leaving_no_empty_folder() -> Iterator[None]:
    """After the block, remove the folders that Hydra made in it and that hold nothing."""
    _absent.clear()
    try:
        yield
    finally:
        for folder in _absent:  # the inner ones first
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
                    (folder / "multirun.yaml").unlink()  # of a sweep without a run
                folder.rmdir()


def _note_absent(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists():
            return
        _absent.append(path.absolute())


class CheckRunFolder(Callback):
    """Refuse a folder for a run before Hydra writes to it: `hydra.run.dir` can be any."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with a mistake, since Hydra makes a warning of what a callback raises."""
        del kwargs
        self._check(config.hydra.run, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Do so for the folder of a sweep's runs, each of which is checked later."""
        del kwargs
        self._check(config.hydra.sweep, "hydra.sweep.dir")

    def _check(self, node: DictConfig, key: str) -> None:
        try:
            folder = check_output_dir(node.dir, key)
            node.dir = folder  # where ~ is home
            _note_absent(Path(folder))
            if key == "hydra.run.dir":
                RunFolder(folder).check_ours()
        except OmegaConfBaseException:
            return  # Hydra reports it next
        except (ConfigError, OSError) as error:
            sys.stderr.write(f"fishr-exp: {one_line(error) or before_the_run(error)}\n")
            raise SystemExit(2) from None


class ShareSweepName(Callback):
    """Resolve `sweep_name` before a sweep's jobs, which Hydra gives all that is resolved then."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the name once: each job would else take the time of its own start."""
        del kwargs
        OmegaConf.select(config, "sweep_name")
        with contextlib.suppress(OmegaConfBaseException):  # Hydra reports a mistake there next
            outcomes.begin(config)


class PassSignalsOn(Callback):
    """Let a signal stop the jobs of a launcher that starts processes, each after a checkpoint.

    Such a launcher kills its processes when it is interrupted itself. Therefore only the jobs are
    interrupted: they end one by one, and the sweep ends with them.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Listen, where the launcher is Hydra's joblib launcher."""
        del kwargs
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            _end_jobs_with_command()
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _pass_on)


def _end_jobs_with_command() -> None:
    """Let joblib's processes stop, each after a checkpoint, when the command is killed."""
    from joblib import register_parallel_backend
    from joblib.parallel import BACKENDS

    class Backend(BACKENDS["loky"]):  # type: ignore[misc, name-defined]
        ends_with_command = True

        def configure(self, *arguments: Any, **keywords: Any) -> int:
            own = {"initializer": begin_job_process, "initargs": (os.getpid(),)}
            workers: int = super().configure(*arguments, **own, **keywords)
            return workers

        def submit(self, *arguments: Any, **keywords: Any) -> Any:
            with starting_jobs():  # with the first job, and where a process has ended
                return super().submit(*arguments, **keywords)

        def apply_async(self, *arguments: Any, **keywords: Any) -> Any:  # before joblib 1.5
            with starting_jobs():
                return super().apply_async(*arguments, **keywords)

    if not hasattr(BACKENDS["loky"], "ends_with_command"):
        register_parallel_backend("loky", Backend)


def _pass_on(number: int, frame: FrameType | None) -> None:
    del frame
    global _signal
    _signal = number
    leave_closed_terminal()
    jobs = [p for p in multiprocessing.active_children() if p.name.startswith("LokyProcess")]
    if not jobs:  # the launcher runs the jobs here, or none yet
        raise Stopped(number)
    for process in jobs:
        with contextlib.suppress(ProcessLookupError):
            # As `command &` in a script ignores Ctrl-C, so do its jobs.
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(process.pid or 0, signal.SIGTERM if ignored else signal.SIGINT)


class WaitForAllJobs(Callback):
    """Let a sweep through submitit wait for all its jobs, and name those that end without a result.

    Its launcher stops waiting for the others when a job was canceled, or killed for its memory.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count such a job as a failed one, where the launcher is submitit's."""
        del kwargs
        if "submitit" not in str(config.hydra.launcher.get("_target_")):
            return
        from submitit.core.core import Job
        from submitit.core.utils import UncompletedJobError

        sweep = outcomes.sweep
        wait = getattr(Job.results, "__wrapped__", Job.results)

        def results(job: Any) -> list[JobReturn]:
            try:
                end = wait(job)[0]
            except UncompletedJobError:
                state = f"{job.state}; its log is {job.paths.stderr}"
                end = JobReturn(overrides=job.submission().args[0], status=JobStatus.FAILED)
                end.return_value = UnfinishedError(state, 1)
            if end.status is JobStatus.FAILED:
                sweep.add(end, job.job_id)
            return [end]

        results.__wrapped__ = wait  # type: ignore[attr-defined]
        Job.results = results  # type: ignore[method-assign, assignment]
