"""Blocks after which the state of networks, and of random numbers, is that from before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def keeping_random_streams(*modules: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Leave the random streams as if nothing had been drawn in the block.

    Args:
        modules: Also the streams of the GPUs that they are on, beside the CPU's.
    """
    gpus = {p.device for module in modules for p in module.parameters() if p.is_cuda}
    return torch.random.fork_rng(devices=list(gpus))


@contextlib.contextmanager
def keeping_buffers(*modules: nn.Module) -> Iterator[None]:
    """Undo what the block does to the modules' buffers, such as BatchNorm's statistics."""
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def keeping_modes(*modules: nn.Module) -> Iterator[None]:
    """Undo calls of `train` and `eval` in the block, for each part of the modules."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
