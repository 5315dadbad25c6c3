"""Minibatches of one domain: endless for training, once through for evaluation."""

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

Asked = tuple[Tensor, torch.Generator | None]
"""Arguments of `Domain.read`: which samples, and the stream of their augmentation."""

_MIN_SAMPLES = 2  # a variance of per-sample gradients needs two
_AHEAD = 2  # minibatches that each thread has ready, as PyTorch's processes


_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # processes that read for our loaders


class Minibatches(Dataset[Minibatch]):
    """The endless stream of minibatches of a domain's training part.

    Minibatch k is a function of the seed, the domain's name and k alone: not of what was read
    before, nor of the number of workers, nor of the other domains. So the step counter is all that
    a checkpoint must keep. Each pass over the part has its own order, and leaves out what does not
    fill a last minibatch.

    Several ranks read the minibatches of one process, each its share of every one. Only the draws
    of an augmentation are others: each rank draws its own.

    Args:
        domain: Where the samples are read.
        indices: The training part [N], int64.
        batch_size: Samples a minibatch, >= 2; None for the whole part at every step, in the order
            of `indices`.
        seed: The run's seed.
        part: Which rank reads, of how many.

    Attributes:
        per_pass: Minibatches in a pass over the part.
        constant: Whether every minibatch is the same, the whole part of a domain in memory. It is
            read once then, and its tensors are the same objects at every step, so that a copy on
            another device can be kept. Treat them as read-only.

    Raises:
        ConfigError: If a minibatch would have fewer than two samples a rank, or more than the part
            has.
    """

    def __init__(
        self,
        domain: Domain,
        indices: Tensor,
        batch_size: int | None,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        _check_sizes(domain.name, len(indices), batch_size, part[1])
        self.domain = domain
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.rank = part[0]
        self.share = share(batch_size or len(indices), *part)
        self.per_pass = 1 if batch_size is None else len(indices) // batch_size
        self.constant = batch_size is None and isinstance(domain, TensorDomain)
        self._whole = domain.read(indices[self.share]) if self.constant else None
        self._pass = -1
        self._order = indices

    def __getitem__(self, k: int) -> Minibatch:
        """Return minibatch `k`, counted from the first step of the run."""
        return self.domain.read(*self.asked(k)) if self._whole is None else self._whole

    def asked(self, k: int) -> Asked:
        """Return what makes up minibatch `k`."""
        own = (self.rank,) if self.rank else ()
        augment = generator(self.seed, "augment", self.domain.name, k, *own)
        return self._indices_of(k)[self.share], augment

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


def share(samples: int, rank: int, ranks: int) -> slice:
    """Return a rank's samples of a minibatch: contiguous, an even number for all but the last.

    Even, so that a rank's samples at even places are those at even places of the whole.
    """
    pairs = samples // 2
    start = 2 * (pairs * rank // ranks)
    return slice(start, samples if rank == ranks - 1 else 2 * (pairs * (rank + 1) // ranks))


def _check_sizes(name: str, samples: int, batch_size: int | None, shares: int) -> None:
    if batch_size is not None and batch_size < _MIN_SAMPLES:
        raise ConfigError(
            "batch_size",
            batch_size,
            "a variance needs at least 2 samples of each domain",
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
    if (batch_size or samples) < _MIN_SAMPLES * shares:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"{shares} ranks share the {batch_size or samples} samples of domain {name}, and a "
            "variance needs at least 2 on each",
            f"choose {_MIN_SAMPLES * shares} or more, or start fewer ranks",
        )


def loader(
    minibatches: Minibatches,
    start: int,
    stop: int,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterable[Minibatch]:
    """Return the minibatches `start`, …, `stop` − 1, in this order, read ahead.

    Its position is the step counter: a loader from step k goes on exactly where another stopped.

    Args:
        minibatches: The stream.
        start: The first step.
        stop: The step after the last.
        num_workers: Who reads ahead: threads for images, which are decoded and augmented without
            the interpreter's lock, and processes for other domains; 0 reads when asked. The
            minibatches are the same for any number. Constant minibatches are there already.
        pin_memory: For a copy to a CUDA device: put the minibatches into page-locked memory, and
            leave images as bytes, which `.to(device)` colors and scales there. Without effect on
            constant minibatches, for it would copy them at every step.
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
    part: tuple[int, int] = (0, 1),
) -> Iterable[Minibatch]:
    """Return the samples at `indices` for evaluation: in order, read ahead, nothing augmented.

    Args:
        domain: Where the samples are read.
        indices: The part [N], int64; with N = 0 there is no chunk.
        size: Samples a chunk; the last may have fewer.
        num_workers: As of `loader`.
        pin_memory: As of `loader`.
        part: Which rank reads, of how many; the ranks take the chunks in turn.
    """
    dataset = _Chunks(domain, indices, size)
    rank, step = part
    return _ahead(dataset, range(rank, len(dataset), step), num_workers, pin_memory)


class _Chunks(Dataset[Minibatch]):
    def __init__(self, domain: Domain, indices: Tensor, size: int) -> None:
        self.domain = domain
        self.parts = indices.split(size) if len(indices) else ()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> Minibatch:
        return self.domain.read(*self.asked(k))

    def asked(self, k: int) -> Asked:
        return self.parts[k], None


def _ahead(
    dataset: Minibatches | _Chunks, items: range, num_workers: int, pin_memory: bool
) -> Iterable[Minibatch]:
    if isinstance(dataset.domain, ImageDomain):
        return _Threads(dataset, dataset.domain, items, num_workers, pin_memory)
    if num_workers:
        _end_workers_at_exit()
    return _Processes(
        _Guarded(dataset),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_run,
        # Its own stream, as a loader draws a seed for its workers: the global one is not touched.
        generator=torch.Generator(),
    )


@functools.cache
def _end_workers_at_exit() -> None:
    """Kill what is left of our workers when the process ends, which would wait for them forever.

    Python ends them by SIGTERM, which they ignore. Other children of a host program stay.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    for process in _workers:
        if process.is_alive():
            process.kill()


def _leave_signals_to_the_run(worker: int) -> None:
    """Let a worker outlive a Ctrl-C, which all processes of a terminal get: the run's step ends."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(item: Any) -> Any:  # the samples of a minibatch are together already
    return item


class _Guarded(Dataset[Any]):
    """Hand an expected error of a worker back as a value, for PyTorch would rewrite its message."""

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
    """A loader that raises the errors that its workers handed back."""

    def __iter__(self) -> Iterator[Minibatch]:  # type: ignore[override]
        items = super().__iter__()
        _workers.update(getattr(items, "_workers", ()))
        for item in items:
            if isinstance(item, TrainingError):
                raise item
            yield item


class _Threads:
    """Minibatches of images, read by threads: nothing is sent between processes."""

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
            yield from (self._read(*self.dataset.asked(k)) for k in self.items)
            return
        pool = ThreadPoolExecutor(self.num_workers, "images")
        ahead: deque[Future[Minibatch]] = deque()
        try:
            for k in self.items:
                ahead.append(pool.submit(self._read, *self.dataset.asked(k)))
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
