"""Differentiates a scalar function in the forward pass, so that its graph is not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def at_once(function: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return `function(tensors)`, a scalar, with its gradient at the tensors instead of its graph.

    Only the gradients stay in memory, each of the size of its tensor.

    Args:
        function: Called once, with tensors of the same values.
        tensors: Those that require a gradient get one; the result is differentiable once.
    """
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return function(leaves).detach()
    value = function(leaves)
    gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    originals = [t for t in tensors if t.requires_grad]
    return with_gradients(value, gradients, originals)


def with_gradients(
    value: Tensor, gradients: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> Tensor:
    """Return a scalar `value` with these gradients at `tensors`; it is differentiable once."""
    return _Known.apply((value.detach(),), tuple(gradients), *tensors)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, value: tuple[Tensor], gradients: tuple[Tensor | None, ...], *tensors: Tensor
    ) -> Tensor:
        del tensors
        ctx.save_for_backward(*gradients)
        return value[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors]
        return None, None, *scaled
