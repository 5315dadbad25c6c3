"""Threads that read minibatches of images ahead: no data is sent between processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from fishr_exp.core.contracts import Minibatch
from fishr_exp.data.images.domain import ImageDomain

Request = tuple[Tensor, torch.Generator | None]
"""Arguments of `Domain.read`: indices of the samples, and the stream of their augmentation."""

PATIENCE = 1  # seconds of a wait, after which a signal may end it
_AHEAD = 2  # minibatches prefetched by each thread, as by PyTorch's workers


class Threads:
    """Minibatches of images, in order, read by threads.

    Args:
        request: Returns what to read for an item.
        domain: The domain to read from.
        items: The items.
        num_workers: Number of threads; 0: nothing is read ahead.
        pin_memory: Put minibatches into page-locked memory, and leave images as bytes.
    """

    def __init__(
        self,
        request: Callable[[int], Request],
        domain: ImageDomain,
        items: range,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.request, self.domain, self.items = request, domain, items
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __iter__(self) -> Iterator[Minibatch]:
        return self.awaited(lambda: None)

    def awaited(self, waiting: Callable[[], None]) -> Iterator[Minibatch]:
        """Iterate; while a minibatch is awaited, call `waiting` every `PATIENCE` seconds."""
        if not self.num_workers:
            yield from (self._read(*self.request(k)) for k in self.items)
            return
        pool = ThreadPoolExecutor(self.num_workers, "images")
        ahead: deque[Future[Minibatch]] = deque()
        try:
            for k in self.items:
                ahead.append(pool.submit(self._read, *self.request(k)))
                if len(ahead) > _AHEAD * self.num_workers:
                    yield _result(ahead.popleft(), waiting)
            while ahead:
                yield _result(ahead.popleft(), waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, indices: Tensor, augment: torch.Generator | None) -> Any:
        if not self.pin_memory:
            return self.domain.read(indices, augment)
        pixels = self.domain.read_pixels(indices, augment)
        if not torch.cuda.is_available():
            return pixels
        return pixels._replace(x=pixels.x.pin_memory(), y=pixels.y.pin_memory())


def _result(future: Future[Minibatch], waiting: Callable[[], None]) -> Minibatch:
    while not wait([future], PATIENCE).done:
        waiting()
    return future.result()
