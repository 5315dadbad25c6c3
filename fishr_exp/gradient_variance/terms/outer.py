"""Moments of per-sample gradients that are matrix products, without keeping those gradients.

A layer that applies its weight at T positions of a sample has the per-sample gradient
g_i = left_i^T right_i, with left_i [T, R] the loss gradients at its outputs and right_i [T, K] its
inputs. Its mean and variance over the samples need each g_i only once, a block at a time; the
gradient of these moments has a closed form: dg_i = 2/n dvariance * (g_i - mean) + dmean / n.
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
"""Maps tensors [b, ...] of b samples to left [b, G, T, R] and right [b, G, T, K], G groups."""

Shapes = tuple[torch.Size, torch.Size]
"""Of the factors of one sample, [1, G, T, R] and [1, G, T, K]."""

CACHE_BLOCK = 2**18
"""Per-sample gradient entries processed at a time on a CPU, which fit into its level-2 cache."""

FEW_ROWS = 8
"""With T = 1 and at most this many rows, building every g_i is cheaper than matrix products."""


def of_vectors(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a layer that multiplies vectors: [n, ..., R] and [n, ..., K], T positions."""
    return _positions(rows), _positions(columns)


def outer_moments(
    factors: Factors, sizes: Sequence[int], limit: int, *tensors: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance, within each domain, of the per-sample gradients left^T right.

    Args:
        factors: Computes left and right; differentiable; treats samples independently.
        sizes: The D sizes.
        limit: Maximum number of entries of a temporary tensor (one sample may exceed it).
        *tensors: Arguments of `factors`, [N, ...] each.

    Returns:
        Mean and biased variance, [D, G, R, K] each; differentiable in `tensors`, once.
    """
    return _OuterMoments.apply(factors, tuple(sizes), limit, *tensors)


class _OuterMoments(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, factors: Factors, sizes: tuple[int, ...], limit: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        shapes = _shapes(factors, tensors)
        left, right = shapes
        mean = tensors[0].new_empty(
            len(sizes), left[1], left[3], right[3], dtype=_dtype(tensors)
        )  # [D, G, R, K]
        variance = torch.empty_like(mean)
        ctx.exact_rows = []  # per domain; None if all rows are exact
        for d, domain in enumerate(zip(*(t.split(sizes) for t in tensors), strict=True)):
            if not _prefers_products(shapes):
                mean[d], variance[d] = _moments(factors, shapes, limit, domain)
                ctx.exact_rows.append(None)
                continue
            left_, right_ = factors(*domain)
            mean[d, 0], variance[d, 0], rows = moments_by_products(left_[:, 0, 0], right_[:, 0, 0])
            if len(rows):
                own, of_rows = partial(_rows_only, factors, rows), _of_rows(shapes, len(rows))
                exact = _moments(own, of_rows, limit, domain)
                mean[d, 0, rows], variance[d, 0, rows] = exact[0][0], exact[1][0]
            ctx.exact_rows.append(rows)
        ctx.save_for_backward(mean, *tensors)  # [D, G, R, K] and [N, ...] each
        ctx.factors, ctx.shapes, ctx.sizes, ctx.limit = factors, shapes, sizes, limit
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
            shift = None if grad_mean is None else grad_mean / n
            scale = torch.zeros_like(mean[d]) if grad_variance is None else grad_variance * (2 / n)
            rows = ctx.exact_rows[d]
            if rows is None:
                _pull_back(ctx.factors, ctx.shapes, ctx.limit, domain, mean[d], scale, shift, out)
                continue
            _pull_back_products(ctx.factors, domain, mean[d], scale, shift, rows, out)
            if len(rows):
                factors = partial(_rows_only, ctx.factors, rows)
                shapes = _of_rows(ctx.shapes, len(rows))
                c = None if shift is None else shift[:, rows]
                extra = [None if whole is None else torch.empty_like(whole) for whole in out]
                m, s = mean[d][:, rows], scale[:, rows]
                _pull_back(factors, shapes, ctx.limit, domain, m, s, c, extra)
                for whole, part in zip(out, extra, strict=True):
                    if whole is not None and part is not None:
                        whole += part
        return None, None, None, *found


def _prefers_products(shapes: Shapes) -> bool:
    _, groups, positions, rows = shapes[0]
    return groups == 1 and positions == 1 and rows > FEW_ROWS


def _rows_only(factors: Factors, rows: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    left, right = factors(*tensors)
    return left[..., rows], right


def _pull_back_products(
    factors: Factors,
    domain: tuple[Tensor, ...],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    exact_rows: Tensor,
    out: list[Tensor | None],
) -> None:
    """Write the gradients at the tensors of one domain, except for those of the exact rows."""
    constant = -scale * mean if shift is None else shift - scale * mean
    constant = constant[0].index_fill(0, exact_rows, 0)
    scale = scale[0].index_fill(0, exact_rows, 0)
    leaves, (left, right) = _differentiable(factors, domain, out)
    grads = pull_back_products(left[:, 0, 0], right[:, 0, 0], scale, constant)
    shaped = tuple(None if grad is None else grad[:, None, None] for grad in grads)
    _finish(leaves, (left, right), shaped, out)


def _moments(
    factors: Factors, shapes: Shapes, limit: int, domain: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and variance [G, R, K] over the samples of one domain.

    Computed from deviations from the mean of the first samples, so that no digits are lost if the
    mean is much larger than the deviations.
    """
    (_, groups, _, rows_all), (*_, columns) = shapes
    around = domain[0].new_empty(groups, rows_all, columns, dtype=_dtype(domain))
    total, squares = torch.zeros_like(around), torch.zeros_like(around)
    for own in _chunks(shapes, limit, domain):
        left, right = factors(*(t[own] for t in domain))
        for group, rows in _blocks(left, right, limit):
            a, b = left[group, :, :, rows], right[group]
            if own.start == group.start == 0:
                around[:, rows] = _product(a, b).mean(0)
            deviation = _deviation(a, b, around[:, rows])  # [b, G, r, K]
            _add_sum(total[:, rows], deviation)
            _add_sum_of_squares(squares[:, rows], deviation)
    n = len(domain[0])
    total /= n
    return around.add_(total), squares.div_(n).addcmul_(total, total, value=-1).clamp_(min=0)


def _pull_back(
    factors: Factors,
    shapes: Shapes,
    limit: int,
    domain: tuple[Tensor, ...],
    mean: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    out: list[Tensor | None],
) -> None:
    """Write the gradients at the tensors of one domain, recomputing each g_i.

    dg_i = scale * (g_i - mean) + shift.
    """
    for own in _chunks(shapes, limit, domain):
        chunk = tuple(t[own] for t in domain)
        own_out = [None if whole is None else whole[own] for whole in out]
        leaves, (left, right) = _differentiable(factors, chunk, own_out)
        left_, right_ = left.detach(), right.detach()
        grad_left = torch.empty_like(left_, memory_format=torch.contiguous_format)
        grad_right = torch.zeros_like(right_, memory_format=torch.contiguous_format)
        for group, rows in _blocks(left_, right_, limit):
            a, b = left_[group, :, :, rows], right_[group]
            grad = _deviation(a, b, mean[:, rows]).mul_(scale[:, rows])  # [b, G, r, K]
            if shift is not None:
                grad += shift[:, rows]
            grad_left[group, :, :, rows] = _at_left(grad, b)
            if right.requires_grad:
                _add_at_right(grad_right[group], grad, a)
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
    """Propagate the gradients at the factors to the tensors, and write them."""
    pairs = [(f, g) for f, g in zip(factors, grads, strict=True) if f.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    parts = torch.autograd.grad([f for f, _ in pairs], wanted, [g for _, g in pairs])
    for whole, part in zip((o for o in out if o is not None), parts, strict=True):
        whole.copy_(part)


def _positions(x: Tensor) -> Tensor:
    """[n, ..., K] to [n, 1, T, K]."""
    return x.reshape(len(x), 1, -1, x.shape[-1])


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return next(t.dtype for t in tensors if t.is_floating_point())


# Many tiny matrix products are slower than one multiplication, so T = 1 is a special case. And a
# product with few columns is several times slower than its transpose with few rows, so positions
# come first.


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right: [b, G, T, r] and [b, G, T, K] to [b, G, r, K]."""
    left = left.transpose(-1, -2)
    return left * right if right.shape[2] == 1 else left @ right


def _deviation(left: Tensor, right: Tensor, around: Tensor) -> Tensor:
    """left^T right - around, with around [G, r, K]."""
    left = left.transpose(-1, -2)
    if right.shape[2] == 1:
        return torch.addcmul(-around, left, right)
    if left.shape[:2] == (1, 1):
        return torch.addmm(around[0], left[0, 0], right[0, 0], beta=-1)[None, None]
    around = around.expand(len(left), *around.shape).flatten(0, 1)
    product = torch.baddbmm(around, left.flatten(0, 1), right.flatten(0, 1), beta=-1)
    return product.unflatten(0, left.shape[:2])


def _add_sum(total: Tensor, values: Tensor) -> None:
    total += values[0] if len(values) == 1 else values.sum(0)


def _add_sum_of_squares(total: Tensor, values: Tensor) -> None:
    """Overwrites `values`."""
    if len(values) == 1:
        total.addcmul_(values[0], values[0])
    else:
        total += values.square_().sum(0)


def _at_left(grad: Tensor, right: Tensor) -> Tensor:
    """[b, G, r, K] and [b, G, T, K] to [b, G, T, r]."""
    if right.shape[2] == 1:
        return (grad * right).sum(-1).unsqueeze(2)
    return right @ grad.transpose(-1, -2)


def _add_at_right(total: Tensor, grad: Tensor, left: Tensor) -> None:
    """Add [b, G, r, K] and [b, G, T, r] to [b, G, T, K]."""
    if left.shape[2] == 1:
        product = grad * left.transpose(-1, -2)
        total += product if product.shape[2] == 1 else product.sum(2, keepdim=True)
    else:
        total += left @ grad


def _chunks(shapes: Shapes, limit: int, domain: tuple[Tensor, ...]) -> Iterator[slice]:
    """Split a domain's samples into chunks whose factors stay within the limit.

    With T = 1 the factors are as large as the gradients, so they should fit into the cache too.
    """
    left, right = shapes
    if right[2] == 1 and domain[0].device.type == "cpu":
        limit = min(limit, CACHE_BLOCK)
    return _slices(len(domain[0]), limit // max(left.numel(), right.numel()))


def _blocks(left: Tensor, right: Tensor, limit: int) -> Iterator[tuple[slice, slice]]:
    """Split a chunk into blocks of samples and rows whose gradients fit the limit, or the cache."""
    if left.device.type == "cpu":
        limit = min(limit, CACHE_BLOCK)
    n, groups, _, rows = left.shape
    row = groups * right.shape[3]
    length = max(1, min(n, limit // (row * rows)))
    for block in _slices(
        rows, limit // row // length
    ):  # outer loop, so that its sums stay in the cache
        for group in _slices(n, length):
            yield group, block


def _slices(count: int, length: int) -> Iterator[slice]:
    length = max(1, min(count, length))
    return (slice(start, min(count, start + length)) for start in range(0, count, length))


def _shapes(factors: Factors, tensors: Sequence[Tensor]) -> Shapes:
    left, right = factors(*(t[:1] for t in tensors))
    return left.shape, right.shape


def _of_rows(shapes: Shapes, rows: int) -> Shapes:
    left, right = shapes
    return torch.Size((*left[:3], rows)), right
