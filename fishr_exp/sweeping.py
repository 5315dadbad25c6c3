"""What a sweep's own process does: it names the sweep, passes signals on, and says what failed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fishr_exp.results.run_folder import CONFIG, RunFolder

_MOST = 10  # failures to name
_folder: Path | None = None  # of the sweep that runs in this process
_signal = 0  # that the sweep was stopped by


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


def stopped_by() -> int:
    """Return the number of the signal that was passed on to the jobs; 0: none."""
    return _signal


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
