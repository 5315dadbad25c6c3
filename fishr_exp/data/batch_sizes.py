"""Sizes of minibatches: what is refused, and the shares of several processes."""

from __future__ import annotations

from fishr_exp.core.errors import ConfigError

_MIN_SAMPLES = 2  # a variance of per-sample gradients needs two


def shard_of(samples: int, rank: int, world_size: int) -> slice:
    """Return the slice of a minibatch for one process: of even length for all but the last rank.

    With even lengths, samples at even positions of a shard are at even positions of the minibatch.
    """
    pairs = samples // 2
    start = 2 * (pairs * rank // world_size)
    return slice(
        start, samples if rank == world_size - 1 else 2 * (pairs * (rank + 1) // world_size)
    )


def check_batch_size(batch_size: int | None) -> None:
    """Refuse minibatches that are too small for a variance; None is the whole domain.

    Raises:
        ConfigError: If they are.
    """
    if batch_size is not None and batch_size < _MIN_SAMPLES:
        raise ConfigError(
            "batch_size",
            batch_size,
            "a variance needs at least 2 samples per domain",
            "choose 2 or more, or null for the whole domain",
        )


def check_sizes(name: str, samples: int, batch_size: int | None, shards: int) -> None:
    """Refuse minibatches that are too small for a variance, or larger than the domain.

    Args:
        name: The domain's name.
        samples: Number of its training samples.
        batch_size: Samples per minibatch; None: all.
        shards: Number of processes that share a minibatch.

    Raises:
        ConfigError: If they are.
    """
    check_batch_size(batch_size)
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
