"""The processes of one distributed run, which `torchrun` starts; without it there is one process.

How several processes compute what a single process would: each process computes the same objective,
and every sum or mean over samples in it is taken over the samples of all processes. Gradients are
averaged over the processes before the optimizer step. The derivative of a sum over processes is, in
each process, the derivative of the sum of all processes' objectives: it is `world_size` times too
large, and covers only the samples of this process. The average corrects both, also where the
processes' shards differ in size.

Only the first process (rank 0) writes: run folder, tracker, progress bar, log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from fishr_exp.core.errors import ConfigError, TrainingError

T = TypeVar("T")
_ENDED, _FAILED = "first rank ended", "failed"
_PATIENCE = timedelta(seconds=30)  # for the first process to record how it ended
_store: distributed.Store | None = None


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_active() -> bool:
    """Whether this process belongs to an initialized process group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if is_active() else 0


def world_size() -> int:
    """The number of processes in the group, 1 without a group."""
    return distributed.get_world_size() if is_active() else 1


def is_first() -> bool:
    """Whether this is the process that writes, rank 0."""
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of `torchrun` for the block; without `torchrun`, do nothing.

    Tensors on the CPU are exchanged by gloo, those on CUDA devices by NCCL.

    When one process fails, the next collective operation of the others fails too. The first process
    then gets some time to record the failure before `torchrun` stops it.
    """
    global _store
    if not launched():
        yield
        return
    _store, number, size = next(distributed.rendezvous("env://"))
    nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo", store=_store, rank=number, world_size=size
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
        with contextlib.suppress(RuntimeError):  # the store is gone, or the wait timed out
            _store.set(_ENDED, "") if number == 0 else _store.wait([_ENDED], _PATIENCE)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Report a failure in the block to the other processes, or raise theirs if it caused ours."""
    try:
        yield
    except Exception as error:
        if _store is None or not is_active():
            raise
        expected = isinstance(error, TrainingError | ConfigError)
        if not expected and _store.check([_FAILED]):
            raise TrainingError(_store.get(_FAILED).decode()) from error
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        _store.set(_FAILED, f"rank {rank()} failed: {message}")
        raise


def device(name: str) -> torch.device:
    """Return the device called `name`; for CUDA without an index, the one of this process.

    Raises:
        ConfigError: If this machine has fewer CUDA devices than processes.
    """
    found = torch.device(name)
    if not is_active() or found.type != "cuda":
        return found
    local, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if local > devices or (local > 1 and found.index is not None):
        raise ConfigError(
            "device", name,
            f"each of the {local} processes needs its own CUDA device, and there are {devices}",
            f"start at most {devices} with --nproc-per-node, and pass device=cuda or device=cpu",
        )  # fmt: skip
    if found.index is None:
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process; return its result, or raise its exception, in all."""
    if world_size() == 1:
        return make()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = make()
        except Exception as error:  # noqa: BLE001 - raised below, in all processes
            box[1] = error
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def total(value: Tensor) -> Tensor:
    """Return the sum over the processes, without gradients."""
    value = value.detach().clone()
    if is_active():
        distributed.all_reduce(value)
    return value


def largest(*values: int) -> list[int]:
    """Return the maximum of each value over the processes, so that all make the same decision."""
    if not is_active():
        return list(values)
    found = torch.tensor(values)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return found.tolist()


def gathered(value: T) -> list[T]:
    """Return the values of all processes, by rank; every process must call it."""
    if not is_active():
        return [value]
    box: list[Any] = [None] * world_size()
    distributed.all_gather_object(box, value)
    return box


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients by their mean over the processes."""
    if not is_active():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])  # one exchange for all
    distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
