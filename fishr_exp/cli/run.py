"""The command `fishr-exp`: parse, call, and turn a user's mistake into one clear line."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

import fishr_exp
from fishr_exp.cli.output import closed_streams, command
from fishr_exp.configuration import outcomes
from fishr_exp.configuration.binding import typed_words
from fishr_exp.configuration.callbacks import (
    handling_signals,
    is_command,
    jobs_go_on,
    leaving_no_empty_folder,
    stopped_by,
)
from fishr_exp.configuration.command_line import arranged
from fishr_exp.configuration.composing import composing_once
from fishr_exp.configuration.console import name_lines
from fishr_exp.configuration.messages import before_the_run, is_out_of_memory, one_line
from fishr_exp.configuration.mistakes import MistakesError
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.permissions import permissions_of
from fishr_exp.configuration.starting import (
    checked_arguments,
    prefer_own_sweepers,
    register_run_name,
)
from fishr_exp.configuration.tree import tree
from fishr_exp.core.errors import (
    ConfigError,
    SharedStepsMade,
    TakenError,
    TrainingError,
    UnfinishedError,
)
from fishr_exp.core.stopping import asked_to_stop, stop_with, stopping_jobs
from fishr_exp.runs.run_folder import CONFIG, LOCK, RunFolder

log = logging.getLogger(__name__)

# Asked for before `main` sets it for itself.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")

_MISTAKE = 2  # the exit status
STOPPED = "stopped; the same command resumes from the last checkpoint"
KILLED = (
    "a job's process was killed, perhaps by the system for its memory; "
    "the same command resumes from the last checkpoints, with fewer jobs at a time if need be"
)
STOPPED_WAITING = (
    "stopped waiting; the jobs keep running; once they have ended, the same command does the rest"
)


@command
def main() -> None:
    """Run the command line; exit with 2 for a user's mistake, 1 for a run that failed."""
    logging.getLogger("torch").setLevel(logging.WARNING)  # it has a word to say at its exit
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and does not print and exit itself
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one of torchrun's processes
        stop_with(os.getppid())
    with handling_signals(), permissions_of(sys.argv[1:]), leaving_no_empty_folder():
        status = _main()
    sys.exit(status)


def _main() -> int:
    if "--version" in sys.argv:
        sys.stdout.write(f"fishr-exp {fishr_exp.__version__}\n")
        return 0
    try:
        sys.argv[1:] = arranged(sys.argv[1:])
    except ValueError as error:
        return _say(str(error), _MISTAKE)
    try:
        register_run_name()
        prefer_own_sweepers()
        start = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
        with composing_once():  # Hydra does it twice for a run, and 150 times for --help
            start(job)()
        return _end_of_sweep(outcomes.sweep.status)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and closed_streams():
            raise
        if isinstance(error, KeyboardInterrupt) or stopped_by():
            message = STOPPED_WAITING if jobs_go_on() else STOPPED
            return _say(message, 128 + (stopped_by() or getattr(error, "signal", signal.SIGINT)))
        if FULL_ERROR:
            raise
        if isinstance(error, MistakesError):
            for line in error.lines():
                _say(line, _MISTAKE)
            return _MISTAKE
        if hasattr(error, "status"):  # from a job of a sweep, which has logged it
            return _end_of_sweep(error.status)
        if type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool"):
            return _say(KILLED, 1)
        return _say(one_line(error) or before_the_run(error), _MISTAKE)


def _end_of_sweep(status: int) -> int:
    """Name what failed, if anything did."""
    for line in outcomes.sweep.failures() if status else ():
        _say(line, status)
    return status


def job(config: DictConfig) -> float | bool | None:
    """Run one configuration.

    Returns:
        For a sweeper that searches the validation accuracy, or None where a test domain chose the
        checkpoint that this is the accuracy of. For `SharingSweeper` whether this call trained the
        run: another command may have trained it since it was launched.
    """
    context = HydraConfig.get()
    folder = Path(context.runtime.output_dir)
    if not is_command():  # of a launcher, beside others
        name_lines(folder.name)
        if number := asked_to_stop():
            _forget(folder)
            raise UnfinishedError(STOPPED, 128 + number)
    _announce(config, context.runtime.choices, folder)
    from fishr_exp.core import distributed  # imports torch
    from fishr_exp.tracking.mlflow import quiet_mlflow  # imports no MLflow
    from fishr_exp.tracking.wandb import quiet_wandb
    from fishr_exp.training.run import run

    quiet_mlflow()
    quiet_wandb()
    is_swept = context.mode is RunMode.MULTIRUN
    looks_again = is_swept and "SharingSweeper" in context.sweeper._target_
    prefix = ""
    try:
        if distributed.launched() and is_swept:
            sys.exit(_say("-m: torchrun starts one run at a time; leave -m or torchrun out", 2))
        with stopping_jobs(), distributed.process_group():
            if not distributed.is_first():
                prefix = f"rank {distributed.rank()}: "
                _only_errors()
            checked = checked_arguments(config, context)
            if config.get("print_config") and distributed.is_first():
                for line in tree(checked.config):
                    log.info("%s", line)
            result, made_here = run(checked, folder)
    except SharedStepsMade:
        log.info("the steps that it shares with other runs are trained")
        return None
    except KeyboardInterrupt as stop:
        if is_command():
            raise
        # A launcher would kill its other processes for a Ctrl-C.
        why = f"{STOPPED} ({stop.__cause__})" if stop.__cause__ else STOPPED
        raise UnfinishedError(why, 128 + getattr(stop, "signal", signal.SIGINT)) from stop
    except Exception as error:
        if isinstance(error, TakenError) and is_swept:
            error.status = _MISTAKE  # type: ignore[attr-defined]
            if looks_again:
                raise
        # Logged here: Hydra reports only a sweep's first failure, and not in the run's own log.
        message = one_line(error)
        if message is None:
            log.exception("fishr-exp: %sthe run failed", prefix)
        else:
            log.error("fishr-exp: %s%s", prefix, message)
        failed = message is None or isinstance(error, TrainingError) or is_out_of_memory(error)
        status = 1 if failed else _MISTAKE
        if status == _MISTAKE:
            _forget(folder)
        if context.mode is RunMode.RUN and not FULL_ERROR:
            raise SystemExit(status) from error  # else Hydra adds a line of its own
        error.status = status  # type: ignore[attr-defined]
        raise
    if looks_again:
        return made_here
    selected = result["selected"]
    return None if selected["uses_test_domain"] else result["validation_accuracy"]


def _announce(config: DictConfig, choices: Mapping[str, str], folder: Path) -> None:
    """Say at once what the run is; importing PyTorch takes a while."""
    is_other = os.environ.get("RANK", "0") != "0"  # torchrun's number of this process
    if is_other or OmegaConf.missing_keys(config):
        return

    def of(key: str) -> Any:
        return OmegaConf.select(config, key, throw_on_missing=False)

    replaced = [w.partition("._target_=")[0] for w in typed_words(HydraConfig.get())]
    named = {key: of(f"{key}._target_") if key in replaced else choices[key] for key in choices}
    gamma = of("trainer.gamma")
    if gamma is not None and "trainer" not in replaced:
        named["trainer"] += f" gamma={gamma}"
    domains = of("test_domains")
    tested = ", ".join(map(str, domains if isinstance(domains, ListConfig) else [domains]))
    slow = "" if "torch" in sys.modules else " (importing PyTorch takes a few seconds)"
    for line in (
        f"trainer={named['trainer']} on dataset={named['dataset']}, tested on {tested}: "
        f"model={named['model']} seed={of('seed')} device={of('device')} "
        f"precision={of('precision')}",
        f"folder {folder}{slow}",
    ):
        log.info("%s", " ".join(line.split()))


def _forget(folder: Path) -> None:
    """Remove what Hydra wrote ahead for a run that was never begun."""
    try:
        RunFolder(folder).check_ours()
    except ConfigError:  # somebody else's: nothing in it is touched
        return
    with contextlib.suppress(OSError, Timeout), FileLock(folder / LOCK).acquire(timeout=0):
        if (folder / CONFIG).exists():  # or another process has it
            return
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
        (folder / "fishr-exp.log").unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()  # unless it holds other things


def _only_errors() -> None:
    """Leave the run's log file, and everything below an error, to the first process."""
    root = logging.getLogger()
    root.setLevel(logging.ERROR)
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"fishr-exp: {message}\n")
    return status


if __name__ == "__main__":
    main()
