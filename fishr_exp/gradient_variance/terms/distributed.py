"""Moments over all processes, each with a shard of every domain's minibatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from .moments import Moments


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over the processes. Its gradient is the sum over all processes' uses of the result."""
    return _Sum.apply(tensor)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return sum_over_ranks(grad)


def over_all_ranks(
    sizes: Sequence[int], device: torch.device
) -> tuple[Callable[[Moments], Moments], tuple[int, ...]]:
    """Return a differentiable function that merges all processes' moments, and the total sizes.

    n = sum_r n_r; mean = sum_r n_r mean_r / n;
    variance = sum_r n_r (variance_r + (mean_r - mean)^2) / n.

    Every process must merge the same parameters in the same order. The gradient of a function of
    the result is the gradient of that function's sum over the processes; data-parallel training
    averages gradients over the processes, which corrects this.

    Args:
        sizes: The D sizes of this process.
        device: The device of the moments.
    """
    own = torch.tensor(sizes, device=device, dtype=torch.float64)
    total = own.clone()
    distributed.all_reduce(total)
    return partial(_merged, weights=own / total), tuple(int(n) for n in total.tolist())


def _merged(moments: Moments, weights: Tensor) -> Moments:
    weights = weights.to(moments.mean.dtype).reshape(-1, *(1,) * (moments.mean.ndim - 1))
    mean = sum_over_ranks(weights * moments.mean)
    variance = sum_over_ranks(weights * (moments.variance + (moments.mean - mean).square()))
    return Moments(mean, variance)
