"""Minibatches of one domain: an endless stream for training, one pass for evaluation."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.util import Finalize
from threading import current_thread, main_thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fishr_exp.core.contracts import Domain, Minibatch
from fishr_exp.core.errors import TrainingError
from fishr_exp.core.seeding import generator
from fishr_exp.core.stopping import STOPPING
from fishr_exp.data.batch_sizes import check_sizes, shard_of
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.images.domain import ImageDomain
from fishr_exp.data.images.threads import PATIENCE, Request, Threads
from fishr_exp.data.sampling import Sampling, draws

_MORE_SPACE = "enlarge /dev/shm (docker run --shm-size=1g), or pass num_workers=0"


_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # processes that read for our loaders


class Minibatches(Dataset[Minibatch]):
    """The endless stream of minibatches of a domain's training part.

    Minibatch k depends only on the seed, the domain's name and k: not on what was read before, on
    the number of workers, or on the other domains. So a checkpoint only needs the step counter.
    Each pass over the part has its own order, and leaves out an incomplete last minibatch; or the
    samples are drawn with replacement, see `sampling.py`.

    Several processes read the same minibatches as one process, each its shard of every minibatch.
    Only the augmentation differs: each process has its own draws.

    Args:
        domain: The domain to read from.
        indices: The training part [N], int64.
        batch_size: Samples per minibatch, >= 2; None: the whole part at every step, in the order
            of `indices`.
        seed: The run's seed.
        shard: Rank and number of the processes that read.
        sampling: How a minibatch's samples are chosen.

    Attributes:
        per_pass: Minibatches in a pass over the part; with replacement as many as would fit, which
            may be none.
        constant: Whether every minibatch is the same, the whole part of a domain in memory. It is
            then read once, and its tensors are the same objects at every step, so that a copy on
            another device can be reused. Treat them as read-only.

    Raises:
        ConfigError: If a minibatch would have fewer than two samples per process, or more than
            the part has, without replacement; or `sampling` does nothing.
    """

    def __init__(
        self,
        domain: Domain,
        indices: Tensor,
        batch_size: int | None,
        seed: int,
        shard: tuple[int, int] = (0, 1),
        sampling: Sampling = "permutation",
    ) -> None:
        repeats = sampling != "permutation"
        check_sizes(domain.name, len(indices), batch_size, shard[1], may_repeat=repeats)
        self._draws = draws(sampling, domain, indices, batch_size, seed)
        self.domain = domain
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.rank = shard[0]
        self.shard = shard_of(batch_size or len(indices), *shard)
        self.per_pass = 1 if batch_size is None else len(indices) // batch_size
        self.constant = batch_size is None and isinstance(domain, TensorDomain)
        self._whole = domain.read(indices[self.shard]) if self.constant else None
        self._pass = -1
        self._order = indices

    def __getitem__(self, k: int) -> Minibatch:
        """Return minibatch `k`, counted from the first step of the run."""
        return self.domain.read(*self.request(k)) if self._whole is None else self._whole

    def request(self, k: int) -> Request:
        """Return the request for minibatch `k`."""
        own = (self.rank,) if self.rank else ()
        augment = generator(self.seed, "augment", self.domain.name, k, *own)
        return self._indices_of(k)[self.shard], augment

    def _indices_of(self, k: int) -> Tensor:
        if self._draws is not None:
            return self._draws(k)
        if self.batch_size is None:
            return self.indices
        number, position = divmod(k, self.per_pass)
        if number != self._pass:
            stream = generator(self.seed, "minibatches", self.domain.name, number)
            self._order = self.indices[torch.randperm(len(self.indices), generator=stream)]
            self._pass = number
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]


def loader(
    minibatches: Minibatches,
    start: int,
    stop: int,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterable[Minibatch]:
    """Return the minibatches `start`, …, `stop` − 1, in this order, with prefetching.

    Its position is the step counter: a loader from step k continues exactly where another stopped.

    Args:
        minibatches: The stream.
        start: The first step.
        stop: The step after the last.
        num_workers: Number of workers that prefetch: threads for images, which are decoded and
            augmented without the interpreter lock, and processes for other domains; 0: no
            prefetching. The minibatches do not depend on it. Constant minibatches need no worker.
        pin_memory: For a copy to a CUDA device: put the minibatches into page-locked memory, and
            leave images as bytes, which `.to(device)` converts there. Has no effect on constant
            minibatches, since it would copy them at every step.
    """
    if minibatches.constant:
        num_workers, pin_memory = 0, False
    return _ahead(minibatches, range(start, stop), num_workers, pin_memory)


def chunks(
    domain: Domain,
    indices: Tensor,
    size: int,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Iterable[Minibatch]:
    """Return the samples at `indices` for evaluation: in order, prefetched, not augmented.

    Args:
        domain: The domain to read from.
        indices: The part [N], int64; with N = 0 there is no chunk.
        size: Samples per chunk; the last may have fewer.
        num_workers: See `loader`.
        pin_memory: See `loader`.
        shard: Rank and number of the processes that read; chunk k is read by
            process k modulo their number.
    """
    dataset = _Chunks(domain, indices, size)
    rank, step = shard
    return _ahead(dataset, range(rank, len(dataset), step), num_workers, pin_memory)


def awaited(minibatches: Iterable[Minibatch], waiting: Callable[[], None]) -> Iterator[Minibatch]:
    """Iterate over minibatches; while one is awaited, call `waiting` about once a second.

    Args:
        minibatches: From `loader` or `chunks`; others are iterated over as they are.
        waiting: May raise, to end the wait and the iteration.
    """
    if isinstance(minibatches, _Processes | Threads):
        return minibatches.awaited(waiting)
    return iter(minibatches)


class _Chunks(Dataset[Minibatch]):
    def __init__(self, domain: Domain, indices: Tensor, size: int) -> None:
        self.domain = domain
        self.parts = indices.split(size) if len(indices) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> Minibatch:
        return self.domain.read(*self.request(k))

    def request(self, k: int) -> Request:
        return self.parts[k], None


def _ahead(
    dataset: Minibatches | _Chunks, items: range, num_workers: int, pin_memory: bool
) -> Iterable[Minibatch]:
    if isinstance(dataset.domain, ImageDomain):
        return Threads(dataset.request, dataset.domain, items, num_workers, pin_memory)
    if num_workers:
        _kill_workers_at_exit()
    return _Processes(
        _Guarded(dataset),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        multiprocessing_context=_start_method() if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        timeout=PATIENCE if num_workers else 0,
        # A loader draws a seed for its workers: from its own stream, not from the global one.
        generator=torch.Generator(),
    )


@functools.cache
def _kill_workers_at_exit() -> None:
    """Kill our remaining workers at exit; otherwise the process would wait for them forever.

    Python sends them SIGTERM, which they ignore. Other child processes are not affected.
    """
    # Not by atexit: a process of joblib's waits for its own before that.
    Finalize(None, _kill_workers, exitpriority=0)


def _start_method() -> str | None:
    """Return how to start workers; None: as is set. joblib sets what is for its own processes."""
    if multiprocessing.get_start_method() == "loky":
        return multiprocessing.get_all_start_methods()[0]  # the system's default
    return None


def _kill_workers() -> None:
    _kill(list(_workers))


def _kill(processes: Sequence[Any]) -> None:
    """Kill processes; PyTorch's handler of SIGCHLD, which would report them, is set aside."""
    has_handler = hasattr(signal, "SIGCHLD") and current_thread() is main_thread()
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if has_handler else None
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    for process in alive:
        process.join(1)  # seconds; one that the system cannot end is left
    if earlier is not None:
        signal.signal(signal.SIGCHLD, earlier)


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker: Ctrl-C reaches all processes, but the run finishes its step."""
    del worker
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _unchanged(item: Any) -> Any:  # the samples of a minibatch are already in one tensor
    return item


class _Guarded(Dataset[Any]):
    """Return an expected error of a worker as a value, since PyTorch would rewrite its message."""

    def __init__(self, dataset: Minibatches | _Chunks) -> None:
        self.dataset = dataset

    def __getitem__(self, k: int) -> Minibatch | TrainingError:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[k]
        try:
            return _shared(self.dataset[k], worker.num_workers)
        except TrainingError as error:
            return error


def _shared(minibatch: Minibatch, num_workers: int) -> Minibatch:
    """Move a minibatch to shared memory.

    PyTorch would do so in a thread of the worker, where an error is printed, and the process that
    trains waits for that minibatch forever.
    """
    try:
        for tensor in minibatch:
            tensor.share_memory_()
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise TrainingError(
            f"num_workers={num_workers}: a worker cannot send a minibatch ({why}); {_MORE_SPACE}"
        ) from error
    return minibatch


def _wait(waiting: Callable[[], None], workers: Sequence[Any]) -> None:
    """Call `waiting`; if it ends the wait, kill the workers, which may never return."""
    try:
        waiting()
    except BaseException:
        _kill(workers)
        raise


class _Processes(DataLoader[Minibatch]):
    """A loader that raises the errors that its workers return."""

    def __iter__(self) -> Iterator[Minibatch]:  # type: ignore[override]
        return self.awaited(lambda: None)

    def awaited(self, waiting: Callable[[], None]) -> Iterator[Minibatch]:
        try:
            if self.num_workers:
                multiprocessing.Lock()  # in shared memory, too, like those of PyTorch's queues
            items = super().__iter__()
        except OSError as error:
            why = f"the workers cannot be started ({error.strerror})"
            raise TrainingError(f"num_workers={self.num_workers}: {why}; {_MORE_SPACE}") from error
        workers, owner = getattr(items, "_workers", ()), os.getpid()
        _workers.update(workers)
        try:
            yield from self._read(items, workers, waiting)
        finally:  # PyTorch would ask them to end, and wait
            if os.getpid() == owner:  # not in a worker, which has a copy of this
                _kill(workers)

    def _read(
        self, items: Iterator[Any], workers: Sequence[Any], waiting: Callable[[], None]
    ) -> Iterator[Minibatch]:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                if why.startswith("DataLoader timed out"):
                    _wait(waiting, workers)
                    continue
                if not why.startswith("DataLoader worker"):
                    raise
                waiting()  # a signal to all processes ends a worker that does not yet ignore it
                _kill(workers)  # else PyTorch reports it once more
                hint = f"it may lack memory, or space in /dev/shm; {_MORE_SPACE}"
                raise TrainingError(f"num_workers={self.num_workers}: {why}; {hint}") from error
            if isinstance(item, TrainingError):
                raise item
            yield item
