"""One named random stream per purpose, so that adding a stream never shifts another."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Derive the seed of a stream from the run's seed and the stream's name.

    The same on every machine and in every process (unlike `hash`, which Python salts).

    Args:
        seed: The run's seed, any integer.
        *purpose: The name of the stream, e.g. `"minibatches", "sketch", 3`.

    Returns:
        An integer in [0, 2**63).
    """
    text = repr((int(seed), *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a new CPU generator for the stream with this `seed` and `purpose`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def seed_global_streams(seed: int, *purpose: str | int) -> None:
    """Seed the global streams, which libraries draw from: Python's, NumPy's and PyTorch's."""
    derived = derive(seed, *purpose)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


@contextlib.contextmanager
def global_streams_kept() -> Iterator[None]:
    """After the block, the global streams are as they were before it."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        with torch.random.fork_rng(devices=range(count)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
