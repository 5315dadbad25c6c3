"""The processes of one run: `torchrun` starts them, each is a rank; without it there is one.

What makes the ranks' result that of one process: every rank computes the same objective, in which
each sum or mean over samples is over those of all ranks, and gradients are averaged over the ranks
before the optimizer's step. The derivative of a sum over ranks is, on each rank, the derivative of
all ranks' objectives together: as many times too large as there are ranks, and for this rank's
samples alone. The average sets both right, also where the ranks' shares differ in size.

The first rank alone writes: run folder, tracker, progress bar, log.
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
_PATIENCE = timedelta(seconds=30)  # for the first rank to write down how it ended
_store: distributed.Store | None = None


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def together() -> bool:
    """Whether this process belongs to a group of ranks."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if together() else 0


def count() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if together() else 1


def first() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that `torchrun` started, in the block; without it, do nothing.

    Tensors on the CPU go by gloo, those on CUDA devices by NCCL.

    When a rank fails, the others' next exchange fails too. The first rank is then given the time
    to record the failure, before `torchrun` ends it.
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
        with contextlib.suppress(RuntimeError):  # a store that is gone, or nothing heard in time
            _store.set(_ENDED, "") if number == 0 else _store.wait([_ENDED], _PATIENCE)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """In the block, tell the other ranks of a failure, and say theirs where it caused ours."""
    try:
        yield
    except Exception as error:
        if _store is None or not together():
            raise
        expected = isinstance(error, TrainingError | ConfigError)
        if not expected and _store.check([_FAILED]):
            raise TrainingError(_store.get(_FAILED).decode()) from error
        said = str(error) if expected else f"{type(error).__name__}: {error}"
        _store.set(_FAILED, f"rank {rank()} failed: {said}")
        raise


def device(name: str) -> torch.device:
    """Return the device called `name`; where it is CUDA without a number, this rank's own.

    Raises:
        ConfigError: If there are fewer CUDA devices than ranks on this machine.
    """
    found = torch.device(name)
    if not together() or found.type != "cuda":
        return found
    here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > devices or (here > 1 and found.index is not None):
        raise ConfigError(
            "device", name, f"{here} ranks need a CUDA device each, and there are {devices}",
            f"start at most {devices} with --nproc-per-node, and pass device=cuda or device=cpu",
        )  # fmt: skip
    if found.index is None:
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` returns, or raise what it raises, on the first rank; on all ranks."""
    if count() == 1:
        return make()
    box: list[Any] = [None, None]
    if first():
        try:
            box[0] = make()
        except Exception as error:  # noqa: BLE001 - raised below, on all ranks
            box[1] = error
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def total(value: Tensor) -> Tensor:
    """Return the sum over the ranks, without gradients."""
    value = value.detach().clone()
    if together():
        distributed.all_reduce(value)
    return value


def largest(*values: int) -> list[int]:
    """Return the largest of each value over the ranks, so that all decide alike."""
    if not together():
        return list(values)
    found = torch.tensor(values)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return found.tolist()


def gathered(value: T) -> list[T]:
    """Return the values of all ranks, in their order; every rank calls it."""
    if not together():
        return [value]
    box: list[Any] = [None] * count()
    distributed.all_gather_object(box, value)
    return box


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients by their mean over the ranks."""
    if not together():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])  # one exchange for all
    distributed.all_reduce(flat)
    flat /= count()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
