"""Moments of per-sample gradients that are matrix products, without keeping those gradients.

A layer that applies its weight at T positions of a sample has the per-sample gradient
g_i = left_i right_i^T, with left_i [R, T] the loss gradients at its outputs and right_i [K, T] its
inputs. Its mean and variance over the samples need each g_i only once, a block at a time; the
gradient of those moments is known too: dg_i = 2/n dv * (g_i - mean) + dmean / n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Factors = Callable[..., tuple[Tensor, Tensor]]
"""Maps tensors [b, ...] of b samples to left [b, G, R, T] and right [b, G, K, T], G groups."""

VECTOR_BLOCK, MATRIX_BLOCK = 2**17, 2**20
"""Per-sample gradient entries worked on at a time on a CPU, for T = 1 and for T > 1, by trial: what
its caches hold."""


def outer_moments(
    factors: Factors, sizes: Sequence[int], limit: int, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance, within each domain, of the per-sample gradients left right^T.

    Args:
        factors: Makes left and right; differentiable; treats samples independently.
        sizes: The D sizes.
        limit: Most entries that a temporary tensor may have (one sample may exceed it).
        *tensors: [N, ...] each, what `factors` takes.

    Returns:
        mean and biased variance, [D, G, R, K] each; differentiable in `tensors`, once.
    """
    return _OuterMoments.apply(factors, tuple(sizes), limit, *tensors)


class _OuterMoments(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, factors: Factors, sizes: tuple[int, ...], limit: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        domains = zip(*(t.split(sizes) for t in tensors), strict=True)
        moments = [_moments_of_domain(factors, limit, domain) for domain in domains]
        mean = torch.stack([m for m, _ in moments])  # [D, G, R, K]
        variance = torch.stack([v for _, v in moments])  # [D, G, R, K]
        ctx.save_for_backward(mean, *tensors)
        ctx.factors, ctx.sizes, ctx.limit = factors, sizes, limit
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, *tensors = ctx.saved_tensors
        grad_mean, grad_variance = grads
        domains = list(zip(*(t.split(ctx.sizes) for t in tensors), strict=True))
        found = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
        start = 0
        for d, (n, domain) in enumerate(zip(ctx.sizes, domains, strict=True)):
            shift = None if grad_mean is None else grad_mean[d] / n
            scale = None if grad_variance is None else grad_variance[d] * (2 / n)
            for chunk in _chunks(ctx.factors, ctx.limit, domain):
                piece = _chunk_backward(ctx.factors, chunk, mean[d], scale, shift, ctx.limit)
                stop = start + len(chunk[0])
                for whole, part in zip(found, piece, strict=True):
                    whole[start:stop] = part
                start = stop
        return None, None, None, *found


def _moments_of_domain(
    factors: Factors, limit: int, domain: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and variance [G, R, K] over the samples of one domain, merged over chunks of them.

    Each chunk is centred by its own mean, and merged as Chan et al. 1979 do, so that a mean much
    larger than the deviation costs no digits.
    """
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for chunk in _chunks(factors, limit, domain):
        left, right = factors(*chunk)
        mean_c, spread_c = _centred_sums(left, right, limit)
        b = len(left)
        if count == 0:
            count, mean, spread = b, mean_c, spread_c
            continue
        step = mean_c.sub_(mean)
        count += b
        spread += spread_c.addcmul_(step, step, value=(count - b) * b / count)
        mean += step.mul_(b / count)
    return mean, spread / count


def _centred_sums(left: Tensor, right: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Mean [G, R, K] over the samples, and sum of the squares around it."""
    _, groups, rows, _ = left.shape
    mean = left.new_empty(groups, rows, right.shape[2])
    spread = torch.empty_like(mean)
    for block in _row_blocks(left, right, limit):
        gradients = _product(left[:, :, block], right)  # [b, G, r, K]
        block_mean = gradients.mean(0)
        gradients -= block_mean
        mean[:, block] = block_mean
        spread[:, block] = gradients.square_().sum(0)
    return mean, spread


def _chunk_backward(
    factors: Factors,
    chunk: tuple[Tensor, ...],
    mean: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    limit: int,
) -> tuple[Tensor, ...]:
    """Gradients at the tensors of one chunk, by building its per-sample gradients anew."""
    leaves = tuple(t.detach().requires_grad_() for t in chunk)
    with torch.enable_grad():
        left, right = factors(*leaves)
    left_, right_ = left.detach(), right.detach()
    grad_left = torch.empty_like(left_, memory_format=torch.contiguous_format)
    grad_right = None
    for block in _row_blocks(left_, right_, limit):
        rows = left_[:, :, block]  # [b, G, r, T]
        if scale is None:
            grad = torch.zeros_like(mean[:, block]).expand(len(left), *mean[:, block].shape)
        else:
            grad = _product(rows, right_).sub_(mean[:, block]).mul_(scale[:, block])
        if shift is not None:
            grad = grad + shift[:, block]  # [b, G, r, K], the gradient at these g_i
        grad_left[:, :, block] = _times_right(grad, right_)
        part = _times_left(grad, rows)
        grad_right = part if grad_right is None else grad_right.add_(part)
    return torch.autograd.grad((left, right), leaves, (grad_left, grad_right))


# Many tiny matrix products are slower than one multiplication: T = 1 goes its own way.


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Left right^T: [b, G, r, T] and [b, G, K, T] to [b, G, r, K]."""
    if left.shape[-1] == 1:
        return left * right.transpose(-1, -2)
    return left @ right.transpose(-1, -2)


def _times_right(grad: Tensor, right: Tensor) -> Tensor:
    """[b, G, r, K] and [b, G, K, T] to [b, G, r, T]."""
    if right.shape[-1] == 1:
        return (grad * right.transpose(-1, -2)).sum(-1, keepdim=True)
    return grad @ right


def _times_left(grad: Tensor, left: Tensor) -> Tensor:
    """[b, G, r, K] and [b, G, r, T] to [b, G, K, T]."""
    if left.shape[-1] == 1:
        product = grad * left
        return product.transpose(-1, -2) if grad.shape[-2] == 1 else product.sum(-2).unsqueeze(-1)
    return grad.transpose(-1, -2) @ left


def _chunks(
    factors: Factors, limit: int, domain: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, ...]]:
    """Cut a domain's samples into chunks whose factors and one row of gradients keep the limit."""
    n = len(domain[0])
    left, right = (f.shape for f in _meta_factors(factors, domain))
    one_sample = max(left.numel(), right.numel())
    length = max(1, min(n, limit // one_sample))
    if domain[0].device.type == "cpu" and right[-1] == 1:
        length = max(1, min(length, VECTOR_BLOCK // (right[1] * right[2])))
    return zip(*(t.split(length) for t in domain), strict=True)


def _meta_factors(factors: Factors, domain: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Factors of one sample without data, for their shapes."""
    return factors(*(torch.empty_like(t[:1], device="meta") for t in domain))


def _row_blocks(left: Tensor, right: Tensor, limit: int) -> Iterator[slice]:
    """Cut the rows of the gradients into blocks that keep the limit, and on a CPU the cache."""
    if left.device.type == "cpu":
        limit = min(limit, VECTOR_BLOCK if left.shape[3] == 1 else MATRIX_BLOCK)
    rows = left.shape[2]
    step = max(1, min(rows, limit // (right.shape[0] * right.shape[1] * right.shape[2])))
    return (slice(start, start + step) for start in range(0, rows, step))
