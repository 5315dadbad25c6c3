"""Moments of per-sample gradients that are matrix products, without keeping those gradients.

A layer that applies its weight at T positions of a sample has the per-sample gradient
g_i = left_i right_i^T, with left_i [R, T] the loss gradients at its outputs and right_i [K, T] its
inputs. Its mean and variance over the samples need each g_i only once, a block at a time; the
gradient of those moments is known too: dg_i = 2/n dvariance * (g_i - mean) + dmean / n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .product import moments_by_products, pull_back_products

Factors = Callable[..., tuple[Tensor, Tensor]]
"""Maps tensors [b, ...] of b samples to left [b, G, R, T] and right [b, G, K, T], G groups."""

VECTOR_BLOCK, MATRIX_BLOCK = 2**17, 2**20
"""Per-sample gradient entries worked on at a time on a CPU, for T = 1 and for T > 1, by trial: what
its caches hold."""

FEW_ROWS = 8
"""With T = 1 and no more rows than these, building every g_i costs less than matrix products."""


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
        Mean and biased variance, [D, G, R, K] each; differentiable in `tensors`, once.
    """
    return _OuterMoments.apply(factors, tuple(sizes), limit, *tensors)


class _OuterMoments(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, factors: Factors, sizes: tuple[int, ...], limit: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = []
        ctx.exact_rows = []  # of each domain; None where all are
        for domain in zip(*(t.split(sizes) for t in tensors), strict=True):
            if not _prefers_products(factors, domain):
                found.append(_moments(factors, limit, domain))
                ctx.exact_rows.append(None)
                continue
            left, right = factors(*domain)
            mean, variance, rows = moments_by_products(left[:, 0, :, 0], right[:, 0, :, 0])
            if len(rows):
                exact = _moments(partial(_rows_only, factors, rows), limit, domain)
                mean[rows], variance[rows] = exact[0][0], exact[1][0]
            found.append((mean[None], variance[None]))
            ctx.exact_rows.append(rows)
        mean, variance = (torch.stack(column) for column in zip(*found, strict=True))
        ctx.save_for_backward(mean, *tensors)  # [D, G, R, K] and [N, ...] each
        ctx.factors, ctx.sizes, ctx.limit = factors, sizes, limit
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, *tensors = ctx.saved_tensors
        found = [
            torch.empty_like(t, memory_format=torch.contiguous_format) if need else None
            for t, need in zip(tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        for d, n in enumerate(ctx.sizes):
            own = slice(sum(ctx.sizes[:d]), sum(ctx.sizes[:d]) + n)
            domain = tuple(t[own] for t in tensors)
            out = [None if whole is None else whole[own] for whole in found]
            grad_mean, grad_variance = (None if grad is None else grad[d] for grad in grads)
            shift = torch.zeros_like(mean[d]) if grad_mean is None else grad_mean / n
            scale = torch.zeros_like(mean[d]) if grad_variance is None else grad_variance * (2 / n)
            rows = ctx.exact_rows[d]
            if rows is None:
                _pull_back(ctx.factors, ctx.limit, domain, mean[d], scale, shift, out)
                continue
            _pull_back_products(ctx.factors, domain, mean[d], scale, shift, rows, out)
            if len(rows):
                factors = partial(_rows_only, ctx.factors, rows)
                m, s, c = (values[:, rows] for values in (mean[d], scale, shift))
                extra = [None if whole is None else torch.empty_like(whole) for whole in out]
                _pull_back(factors, ctx.limit, domain, m, s, c, extra)
                for whole, part in zip(out, extra, strict=True):
                    if whole is not None and part is not None:
                        whole += part
        return None, None, None, *found


def _prefers_products(factors: Factors, domain: tuple[Tensor, ...]) -> bool:
    left, _ = _shapes(factors, domain)
    return left[1] == 1 and left[2] > FEW_ROWS and left[3] == 1


def _rows_only(factors: Factors, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    left, right = factors(*tensors)
    return left[:, :, rows], right


def _pull_back_products(
    factors: Factors,
    domain: tuple[Tensor, ...],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    exact_rows: Tensor,
    out: list[Tensor | None],
) -> None:
    """Write the gradients at the tensors of one domain, except for those of the exact rows."""
    constant = (shift - scale * mean)[0].index_fill(0, exact_rows, 0)
    scale = scale[0].index_fill(0, exact_rows, 0)
    leaves, (left, right) = _differentiable(factors, domain, out)
    grads = pull_back_products(
        left.detach()[:, 0, :, 0], right.detach()[:, 0, :, 0], scale, constant
    )
    _finish(leaves, (left, right), tuple(grad[:, None, :, None] for grad in grads), out)


def _moments(factors: Factors, limit: int, domain: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean and variance [G, R, K] over the samples of one domain, merged over chunks of them.

    Each chunk is centred by its own mean, and merged as Chan et al. 1979 do, so that a mean much
    larger than the deviation costs no digits.
    """
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for own in _chunks(factors, limit, domain):
        chunk = tuple(t[own] for t in domain)
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


def _pull_back(
    factors: Factors,
    limit: int,
    domain: tuple[Tensor, ...],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: list[Tensor | None],
) -> None:
    """Write the gradients at the tensors of one domain, building each g_i anew.

    dg_i = scale * (g_i - mean) + shift.
    """
    for own in _chunks(factors, limit, domain):
        chunk = tuple(t[own] for t in domain)
        own_out = [None if whole is None else whole[own] for whole in out]
        leaves, (left, right) = _differentiable(factors, chunk, own_out)
        left_, right_ = left.detach(), right.detach()
        grad_left = torch.empty_like(left_, memory_format=torch.contiguous_format)
        grad_right = None
        for block in _row_blocks(left_, right_, limit):
            rows = left_[:, :, block]  # [b, G, r, T]
            grad = _product(rows, right_).sub_(mean[:, block])
            grad = grad.mul_(scale[:, block]).add_(shift[:, block])  # [b, G, r, K]
            grad_left[:, :, block] = _times_right(grad, right_)
            if right.requires_grad:
                part = _times_left(grad, rows)
                grad_right = part if grad_right is None else grad_right.add_(part)
        _finish(leaves, (left, right), (grad_left, grad_right), own_out)


def _differentiable(
    factors: Factors, tensors: tuple[Tensor, ...], out: list[Tensor | None]
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Factors with a graph to those of the tensors that need a gradient."""
    leaves = [t.detach().requires_grad_(o is not None) for t, o in zip(tensors, out, strict=True)]
    with torch.enable_grad():
        return leaves, factors(*leaves)


def _finish(
    leaves: list[Tensor],
    factors: tuple[Tensor, Tensor],
    grads: tuple[Tensor | None, ...],
    out: list[Tensor | None],
) -> None:
    """Pull the gradients at the factors back to the tensors, and write them."""
    pairs = [(f, g) for f, g in zip(factors, grads, strict=True) if f.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    parts = torch.autograd.grad([f for f, _ in pairs], wanted, [g for _, g in pairs])
    for whole, part in zip((o for o in out if o is not None), parts, strict=True):
        whole.copy_(part)


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


def _chunks(factors: Factors, limit: int, domain: tuple[Tensor, ...]) -> Iterator[slice]:
    """Cut a domain's samples into chunks whose factors keep the limit."""
    n = len(domain[0])
    left, right = _shapes(factors, domain)
    length = limit // max(left.numel(), right.numel())
    if domain[0].device.type == "cpu" and right[3] == 1:
        length = min(length, VECTOR_BLOCK // (right[1] * right[2]))
    length = max(1, min(n, length))
    return (slice(start, start + length) for start in range(0, n, length))


def _shapes(factors: Factors, domain: tuple[Tensor, ...]) -> tuple[torch.Size, torch.Size]:
    """Shapes of the factors of one sample, from tensors without data."""
    left, right = factors(*(torch.empty_like(t[:1], device="meta") for t in domain))
    return left.shape, right.shape


def _row_blocks(left: Tensor, right: Tensor, limit: int) -> Iterator[slice]:
    """Cut the rows of the gradients into blocks that keep the limit, and on a CPU the cache."""
    if left.device.type == "cpu":
        limit = min(limit, VECTOR_BLOCK if left.shape[3] == 1 else MATRIX_BLOCK)
    rows = left.shape[2]
    step = max(1, min(rows, limit // (right.shape[0] * right.shape[1] * right.shape[2])))
    return (slice(start, start + step) for start in range(0, rows, step))
