"""What the command's own process does: it heeds signals, names the sweep, says what failed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fishr_exp.errors import Stopped
from fishr_exp.results.run_folder import CONFIG, RunFolder

_MOST = 10  # failures to name
_folder: Path | None = None  # of the sweep that runs in this process
_signal = 0  # that the command was stopped by


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """In the block, let Ctrl-C and SIGTERM raise `Stopped`, and note which it was.

    Libraries turn what is raised into errors of their own; so `stopped_by` tells.
    """
    global _signal
    _signal = 0
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
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


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    global _signal
    _signal = number
    raise Stopped(number)


class ShareSweepName(Callback):
    """Resolve `sweep_name` before a sweep's jobs, which Hydra gives all that is resolved then."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the name once: each job would else take the time of its own start."""
        del kwargs
        global _folder
        OmegaConf.select(config, "sweep_name")
        _folder = Path(config.hydra.sweep.dir)


class PassSignalsOn(Callback):
    """Let a signal stop the jobs of a launcher that starts processes, each after a checkpoint.

    Such a launcher kills its processes when it is interrupted itself. So it is not: the jobs end,
    one by one, and so does the sweep.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Listen, where the launcher is Hydra's joblib launcher."""
        del kwargs
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _pass_on)


def _pass_on(number: int, frame: FrameType | None) -> None:
    del frame
    global _signal
    _signal = number
    for process in multiprocessing.active_children():
        with contextlib.suppress(ProcessLookupError):
            # Not SIGTERM: a process that is between two runs would die of it, and the others too.
            os.kill(process.pid or 0, signal.SIGINT)


def failures() -> list[str]:
    """Name the runs in the sweep's folder that failed, each with its error."""
    if _folder is None:
        return []
    folders = [RunFolder(path.parent) for path in sorted(_folder.glob(f"*/{CONFIG}"))]
    failed = [folder for folder in folders if folder.state == "failed"]
    lines = [f"  {folder.path.name}: {(folder.result() or {}).get('error')}" for folder in failed]
    if not lines:
        return []
    more = [f"  and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    count = f"{len(lines)} run{'s' * (len(lines) != 1)}"
    head = f"{count} in {_folder} failed; retry_failed=true tries again, from the last checkpoint:"
    return [head, *lines[:_MOST], *more]
