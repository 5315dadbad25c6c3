"""Sizes of minibatches: what is refused, and the shares of several processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fishr_exp.core.errors import ConfigError

BatchSize = int | Mapping[str, int | None] | None
"""Samples of a domain in a minibatch; None: all of them. For each domain the same, or by name."""

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


def batch_size_of(batch_size: BatchSize, domain: str) -> int | None:
    """Return the batch size of one domain; None: the whole domain."""
    return batch_size[domain] if isinstance(batch_size, Mapping) else batch_size


def check_named(batch_size: BatchSize, domains: Iterable[str], training: Iterable[str]) -> None:
    """Refuse batch sizes by domain that name an unknown domain, or leave one out.

    Args:
        batch_size: The batch sizes.
        domains: The domains of the dataset.
        training: Those to train on; the size of another has no effect.

    Raises:
        ConfigError: If they do.
    """
    if not isinstance(batch_size, Mapping):
        return
    shown = f"{{{', '.join(f'{k}: {v}' for k, v in batch_size.items())}}}"
    known = ", ".join(domains)
    if unknown := [name for name in batch_size if name not in domains]:
        reason = f"there is no domain {unknown[0]}"
        raise ConfigError("batch_size", shown, reason, f"choose from {known}")
    if left := [name for name in training if name not in batch_size]:
        reason = f"has no size for the training domain {left[0]}"
        raise ConfigError("batch_size", shown, reason, f"add {left[0]}: NUMBER")


def check_batch_size(batch_size: BatchSize) -> None:
    """Refuse minibatches that are too small for a variance; None is the whole domain.

    Raises:
        ConfigError: If they are.
    """
    if isinstance(batch_size, Mapping):
        for size in batch_size.values():
            check_batch_size(size)
    elif batch_size is not None and batch_size < _MIN_SAMPLES:
        raise ConfigError(
            "batch_size",
            batch_size,
            "a minibatch needs at least 2 samples of each domain, as variances do",
            "choose 2 or more, or null for the whole domain",
        )


def check_sizes(
    name: str, samples: int, batch_size: int | None, shards: int, *, may_repeat: bool = False
) -> None:
    """Refuse minibatches that are too small for a variance, or larger than the domain.

    Args:
        name: The domain's name.
        samples: Number of its training samples.
        batch_size: Samples per minibatch; None: all.
        shards: Number of processes that share a minibatch.
        may_repeat: Whether a minibatch may hold a sample more than once, and so be larger.

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
    if batch_size is not None and batch_size > samples and not may_repeat:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"domain {name} has {samples} training samples",
            f"choose at most {samples}, null for the whole domain, or sampling=with_replacement",
        )
    if (batch_size or samples) < _MIN_SAMPLES * shards:
        raise ConfigError(
            "batch_size",
            batch_size,
            f"{shards} processes share the {batch_size or samples} samples of domain {name}, and a "
            "variance needs at least 2 in each",
            f"choose {_MIN_SAMPLES * shards} or more, or start fewer processes",
        )
