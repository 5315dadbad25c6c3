"""Moments of per-sample gradients that are built one sample at a time, without keeping them.

On a CPU the library's own convolution kernels, called for one sample, are faster than a product of
unfolded inputs: they need no unfolding, and the sample's gradient stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT_SHARE = 3
"""Gradients are kept if they need at most this many times the memory of their layer's tensors."""


class Single(NamedTuple):
    """The per-sample gradient of one use of a parameter, from two tensors of that sample."""

    delta: Tensor  # [N, ...], the gradient at the output
    x: Tensor  # [N, ...], the input
    gradient: Callable[[Tensor, Tensor], Tensor]  # of delta [1, ...] and x [1, ...]
    pull_back: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
    """Maps the gradient's gradient, delta, x to the gradients at delta and, if requested, at x."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that the gradient is computed from."""
        return self.delta, self.x

    def of(self, inputs: Sequence[Tensor]) -> Single:
        """Return the same term with other inputs."""
        delta, x = inputs
        return self._replace(delta=delta, x=x)


def single_moments(
    terms: Sequence[Single], sizes: Sequence[int], limit: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance, within each domain, of the per-sample gradients, summed over `terms`.

    Args:
        terms: The uses of one parameter.
        sizes: The D sizes.
        limit: Maximum number of entries of a temporary tensor. Within it, gradients that are not
            much larger than the layer's input and output are kept for the backward pass; the others
            are recomputed.

    Returns:
        Mean and biased variance, [D, *shape of the parameter] each; differentiable once.
    """
    tensors = [tensor for term in terms for tensor in (term.delta, term.x)]
    kernels = [(term.gradient, term.pull_back) for term in terms]
    return _SingleMoments.apply(kernels, tuple(sizes), limit, *tensors)


def gradients_of_single(term: Single) -> Tensor:
    """All per-sample gradients [N, *shape of the parameter]; differentiable once."""
    return _SingleGradients.apply(term.gradient, term.pull_back, term.delta, term.x)


class _SingleGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Any, pull_back: Any, delta: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(delta, x)
        ctx.pull_back = pull_back
        return torch.stack([gradient(delta[[i]], x[[i]]) for i in range(len(x))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        delta, x = ctx.saved_tensors
        at_x = ctx.needs_input_grad[3]
        parts = [ctx.pull_back(g, delta[[i]], x[[i]], at_x) for i, g in enumerate(grads)]
        at_delta, at_input = zip(*parts, strict=True)
        return None, None, torch.cat(at_delta), torch.cat(at_input) if at_x else None


class _SingleMoments(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        kernels: list[tuple[Any, Any]],
        sizes: tuple[int, ...],
        limit: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        mean = variance = tensors[0].new_empty(0)
        start = 0
        ctx.kept, ctx.offsets = {}, {}  # g_i minus the first of its domain, by sample; their mean
        limit = min(limit, KEPT_SHARE * sum(t.numel() for t in tensors))
        for d, n in enumerate(sizes):
            # Sums of deviations from the first sample lose no digits if the mean is large.
            first = _gradient(kernels, tensors, start)
            if d == 0:
                mean = first.new_empty(len(sizes), *first.shape)
                variance = torch.empty_like(mean)
            keeps = first.numel() * sum(sizes) <= limit and any(ctx.needs_input_grad)
            total, squares = torch.zeros_like(first), torch.zeros_like(first)
            for i in range(start + 1, start + n):
                deviation = _gradient(kernels, tensors, i).sub_(first)
                total += deviation
                squares.addcmul_(deviation, deviation)
                if keeps:
                    ctx.kept[i] = deviation
            total /= n
            squares /= n
            torch.addcmul(squares, total, total, value=-1, out=variance[d]).clamp_(min=0)
            if keeps:
                ctx.kept[start], ctx.offsets[start] = torch.zeros_like(first), total
            torch.add(first, total, out=mean[d])
            start += n
        ctx.save_for_backward(mean, *tensors)
        ctx.kernels, ctx.sizes = kernels, sizes
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, *tensors = ctx.saved_tensors
        grad_mean, grad_variance = grads
        needed = ctx.needs_input_grad[3:]
        if grad_mean is None and grad_variance is None:
            return (None,) * len(ctx.needs_input_grad)
        pairs = zip(tensors, needed, strict=True)
        found = [torch.empty_like(t) if need else None for t, need in pairs]
        start = 0
        for d, n in enumerate(ctx.sizes):
            scale = None if grad_variance is None else grad_variance[d] * (2 / n)
            shift = None if grad_mean is None else grad_mean[d] / n
            for i in range(start, start + n):
                if scale is None:
                    grad = shift
                else:
                    if i in ctx.kept:
                        grad = torch.sub(ctx.kept[i], ctx.offsets[start])
                    else:
                        grad = _gradient(ctx.kernels, tensors, i).sub_(mean[d])
                    grad.mul_(scale)
                    grad = grad if shift is None else grad.add_(shift)
                for k, (_, pull_back) in enumerate(ctx.kernels):
                    delta, x = tensors[2 * k][i : i + 1], tensors[2 * k + 1][i : i + 1]
                    parts = pull_back(grad, delta, x, needed[2 * k + 1])
                    for whole, part in zip(found[2 * k : 2 * k + 2], parts, strict=True):
                        if whole is not None:
                            whole[i : i + 1] = part
            start += n
        return None, None, None, *found


def _gradient(kernels: list[tuple[Any, Any]], tensors: Sequence[Tensor], i: int) -> Tensor:
    """Gradient of sample i, a new tensor."""
    parts = [
        gradient(tensors[2 * k][i : i + 1], tensors[2 * k + 1][i : i + 1])
        for k, (gradient, _) in enumerate(kernels)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
