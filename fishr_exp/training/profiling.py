"""PyTorch's profiler over some steps of a run: a table on the console, and a trace."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fishr_exp.core import distributed
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.names import PROFILE, TRACE

log = logging.getLogger(__name__)

_WARM = 3  # steps before: the first ones allocate, and choose algorithms
_ROWS = 15


@contextlib.contextmanager
def profiling(
    steps: int | None, folder: Path, device: torch.device
) -> Iterator[Callable[[], None] | None]:
    """Profile steps of the run in the block; give what is to be called after each step.

    The first three steps are left out. The trace is for `chrome://tracing` or ui.perfetto.dev.

    Args:
        steps: How many steps; None: none, and nothing is to be called.
        folder: Of the run, where the files go.
        device: Where the run trains.
    """
    if steps is None or not distributed.is_first():
        yield None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library writes to the console
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    of = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    written = False

    def write(profiler: profile) -> None:
        nonlocal written
        written = True
        table = profiler.key_averages().table(sort_by=of, row_limit=_ROWS, max_name_column_width=40)
        profiler.export_chrome_trace(str(folder / TRACE))
        write_atomically(folder / PROFILE, table.encode())
        made = min(steps, profiler.step_num - _WARM)  # the run may have ended before
        log.info("profile of %d step%s, in %s and %s:", made, "s" * (made != 1), PROFILE, TRACE)
        for line in table.splitlines():
            log.info("%s", line)

    profiler = profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=_WARM, active=steps, repeat=1),
        on_trace_ready=write,
    )
    with profiler:
        yield profiler.step
    if not written:
        log.warning(
            "profile_steps=%d: the run made no step after the first %d, which are left out; raise "
            "epochs or total_steps, or pass resume=false",
            steps,
            _WARM,
        )
