"""The split of a domain into a training and a validation part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fishr_exp.core.contracts import Domain
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.seeding import generator


class Split(NamedTuple):
    """Indices into a domain, ascending in each part; every index is in exactly one part."""

    train: Tensor  # [N - floor(fraction * N)], int64
    validation: Tensor  # [floor(fraction * N)], int64


def check_fraction(holdout_fraction: float) -> None:
    """Refuse what is not the part of a domain.

    Raises:
        ConfigError: If it is outside [0, 1).
    """
    if not 0 <= holdout_fraction < 1:
        raise ConfigError("holdout_fraction", holdout_fraction, "must be a fraction in [0, 1)")


def limited(parts: Split, limit: int | None, seed: int, name: str) -> Split:
    """Leave at most so many samples of each part, drawn at random; of 10, all are among 20.

    Args:
        parts: The split of a domain.
        limit: Samples of each part; None: all.
        seed: The seed of the split.
        name: The domain's name.
    """
    if limit is None:
        return parts

    def of(part: Tensor, purpose: str) -> Tensor:
        order = torch.randperm(len(part), generator=generator(seed, "limit", purpose, name))
        return part[order[:limit]].sort().values

    return Split(of(parts.train, "train"), of(parts.validation, "validation"))


def split(domain: Domain, holdout_fraction: float, seed: int) -> Split:
    """Split a domain at random, by a stream that depends on `seed` and the domain's name only.

    So every method and every gamma sees the same split, and other domains do not affect it.

    A domain with an attribute `validation` (the indices of that part) is split accordingly.

    Args:
        domain: The domain.
        holdout_fraction: Fraction of the domain that is kept for validation, in [0, 1).
        seed: The run's seed.

    Raises:
        ConfigError: If `holdout_fraction` is outside [0, 1).
    """
    check_fraction(holdout_fraction)
    given = getattr(domain, "validation", None)
    if given is not None:
        kept = torch.ones(len(domain), dtype=torch.bool)
        kept[given] = False
        return Split(kept.nonzero()[:, 0], given.sort().values)
    count = int(holdout_fraction * len(domain))
    order = torch.randperm(len(domain), generator=generator(seed, "split", domain.name))
    # Ascending parts are read in the order of storage; minibatches are shuffled separately.
    return Split(order[count:].sort().values, order[:count].sort().values)
