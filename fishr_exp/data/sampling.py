"""Which samples of a domain a minibatch holds, where they are drawn with replacement."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from fishr_exp.core.contracts import Domain
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.seeding import generator

Sampling = Literal["permutation", "with_replacement", "class_balanced"]


class Draws(Protocol):
    """Draws minibatches, each a function of its number alone."""

    def __call__(self, k: int) -> Tensor:
        """Return the indices [n], int64, of minibatch `k`."""
        ...


def draws(
    sampling: Sampling, domain: Domain, indices: Tensor, batch_size: int | None, seed: int
) -> Draws | None:
    """Return what draws the minibatches of a domain; None for those of a permutation.

    Args:
        sampling: `with_replacement` draws each sample from the whole part, as DomainBed's loaders
            do; `class_balanced` first draws a class among those in the part, all alike, and then
            one of its samples.
        domain: The domain.
        indices: Its training part [N], int64.
        batch_size: Samples per minibatch.
        seed: The run's seed.

    Raises:
        ConfigError: If there is nothing to draw, or a class is to be drawn and the labels are not
            known without reading the samples.
    """
    if sampling == "permutation":
        return None
    if batch_size is None:
        reason = f"a minibatch of domain {domain.name} is the whole domain: nothing is drawn"
        raise ConfigError("sampling", sampling, reason, "pass batch_size=NUMBER, or leave it out")
    if sampling == "with_replacement":
        return _WithReplacement(domain.name, indices, batch_size, seed)
    labels = getattr(domain, "labels", None)
    if labels is None:
        reason = f"domain {domain.name} does not say its labels, and would have to be read first"
        hint = "give it an attribute labels, int64 [N], or choose another sampling"
        raise ConfigError("sampling", sampling, reason, hint)
    return _ClassBalanced(domain.name, indices, labels, batch_size, seed)


class _WithReplacement:
    def __init__(self, name: str, indices: Tensor, batch_size: int, seed: int) -> None:
        self.name, self.indices, self.size, self.seed = name, indices, batch_size, seed

    def __call__(self, k: int) -> Tensor:
        stream = generator(self.seed, "minibatches with replacement", self.name, k)
        return self.indices[torch.randint(len(self.indices), (self.size,), generator=stream)]


class _ClassBalanced:
    def __init__(
        self, name: str, indices: Tensor, labels: Tensor, batch_size: int, seed: int
    ) -> None:
        self.name, self.size, self.seed = name, batch_size, seed
        own = labels[indices]
        self.by_class = indices[own.argsort(stable=True)]
        self.counts = own.unique(return_counts=True)[1]
        self.starts = self.counts.cumsum(0) - self.counts

    def __call__(self, k: int) -> Tensor:
        stream = generator(self.seed, "class-balanced minibatches", self.name, k)
        classes = torch.randint(len(self.counts), (self.size,), generator=stream)
        part = torch.rand(self.size, generator=stream, dtype=torch.float64)
        within = (part * self.counts[classes]).long()
        return self.by_class[self.starts[classes] + within]
