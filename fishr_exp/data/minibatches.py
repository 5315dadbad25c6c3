"""Minibatches of one domain: an endless stream for training, one pass for evaluation."""

from __future__ import annotations

import atexit
import functools
import signal
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fishr_exp.core.contracts import Domain, Minibatch
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.core.seeding import generator
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.images.domain import ImageDomain

Request = tuple[Tensor, torch.Generator | None]
"""Arguments of `Domain.read`: indices of the samples, and the stream of their augmentation."""

_MIN_SAMPLES = 2  # a variance of per-sample gradients needs two
_AHEAD = 2  # minibatches prefetched by each thread, as by PyTorch's workers


_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # processes that read for our loaders


class Minibatches(Dataset[Minibatch]):
    """The endless stream of minibatches of a domain's training part.

    Minibatch k depends only on the seed, the domain's name and k: not on what was read before, on
    the number of workers, or on the other domains. So a checkpoint only needs the step counter.
    Each pass over the part has its own order, and leaves out an incomplete last minibatch.

    Several processes read the same minibatches as one process, each its shard of every minibatch.
    Only the augmentation differs: each process has its own draws.

    Args:
        domain: The domain to read from.
        indices: The training part [N], int64.
        batch_size: Samples per minibatch, >= 2; None: the whole part at every step, in the order
            of `indices`.
        seed: The run's seed.
        shard: Rank and number of the processes that read.

    Attributes:
        per_pass: Minibatches in a pass over the part.
        constant: Whether every minibatch is the same, the whole part of a domain in memory. It is
            then read once, and its tensors are the same objects at every step, so that a copy on
            another device can be reused. Treat them as read-only.

    Raises:
        ConfigError: If a minibatch would have fewer than two samples per process, or more than
            the part has.
    """

    def __init__(
        self,
        domain: Domain,
        indices: Tensor,
        batch_size: int | None,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        _check_sizes(domain.name, len(indices), batch_size, shard[1])
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
        if self.batch_size is None:
            return self.indices
        number, position = divmod(k, self.per_pass)
        if number != self._pass:
            stream = generator(self.seed, "minibatches", self.domain.name, number)
            self._order = self.indices[torch.randperm(len(self.indices), generator=stream)]
            self._pass = number
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]


def shard_of(samples: int, rank: int, world_size: int) -> slice:
    """Return the slice of a minibatch for one process: of even length for all but the last rank.

    With even lengths, samples at even positions of a shard are at even positions of the minibatch.
    """
    pairs = samples // 2
    start = 2 * (pairs * rank // world_size)
    return slice(
        start, samples if rank == world_size - 1 else 2 * (pairs * (rank + 1) // world_size)
    )


def _check_sizes(name: str, samples: int, batch_size: int | None, shards: int) -> None:
    if batch_size is not None and batch_size < _MIN_SAMPLES:
        raise ConfigError(
            "batch_size",
            batch_size,
            "a variance needs at least 2 samples per domain",
            "choose 2 or more, or null for the whole domain",
        )
    if samples < _MIN_SAMPLES:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"domain {name} has {samples} training sample{'s' * (samples != 1)}, and a variance "
            "needs at least 2",
            "lower holdout_fraction, or give the domain more samples",
        )
    if batch_size is not None and batch_size > samples:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"domain {name} has {samples} training samples",
            f"choose at most {samples}, or null for the whole domain",
        )
    if (batch_size or samples) < _MIN_SAMPLES * shards:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"{shards} processes share the {batch_size or samples} samples of domain {name}, and a "
            "variance needs at least 2 in each",
            f"choose {_MIN_SAMPLES * shards} or more, or start fewer processes",
        )


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
        return _Threads(dataset, dataset.domain, items, num_workers, pin_memory)
    if num_workers:
        _kill_workers_at_exit()
    return _Processes(
        _Guarded(dataset),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        # A loader draws a seed for its workers: from its own stream, not from the global one.
        generator=torch.Generator(),
    )


@functools.cache
def _kill_workers_at_exit() -> None:
    """Kill our remaining workers at exit; otherwise the process would wait for them forever.

    Python sends them SIGTERM, which they ignore. Other child processes are not affected.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    for process in _workers:
        if process.is_alive():
            process.kill()


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker: Ctrl-C reaches all processes, but the run finishes its step."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(item: Any) -> Any:  # the samples of a minibatch are already in one tensor
    return item


class _Guarded(Dataset[Any]):
    """Return an expected error of a worker as a value, since PyTorch would rewrite its message."""

    def __init__(self, dataset: Minibatches | _Chunks) -> None:
        self.dataset = dataset

    def __getitem__(self, k: int) -> Minibatch | TrainingError:
        try:
            return self.dataset[k]
        except TrainingError as error:
            if get_worker_info() is None:
                raise
            return error


class _Processes(DataLoader[Minibatch]):
    """A loader that raises the errors that its workers return."""

    def __iter__(self) -> Iterator[Minibatch]:  # type: ignore[override]
        items = super().__iter__()
        _workers.update(getattr(items, "_workers", ()))
        for item in items:
            if isinstance(item, TrainingError):
                raise item
            yield item


class _Threads:
    """Minibatches of images, read by threads: no data is sent between processes."""

    def __init__(
        self,
        dataset: Minibatches | _Chunks,
        domain: ImageDomain,
        items: range,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.dataset, self.domain, self.items = dataset, domain, items
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __iter__(self) -> Iterator[Minibatch]:
        if not self.num_workers:
            yield from (self._read(*self.dataset.request(k)) for k in self.items)
            return
        pool = ThreadPoolExecutor(self.num_workers, "images")
        ahead: deque[Future[Minibatch]] = deque()
        try:
            for k in self.items:
                ahead.append(pool.submit(self._read, *self.dataset.request(k)))
                if len(ahead) > _AHEAD * self.num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, indices: Tensor, augment: torch.Generator | None) -> Any:
        if not self.pin_memory:
            return self.domain.read(indices, augment)
        pixels = self.domain.read_pixels(indices, augment)
        if not torch.cuda.is_available():
            return pixels
        return pixels._replace(x=pixels.x.pin_memory(), y=pixels.y.pin_memory())
