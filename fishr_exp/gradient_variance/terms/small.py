"""Variances of the gradients of small layers, with their derivative, without a graph.

A step on a small minibatch takes as long as the number of its operations. These are the operations
of `moments_of_terms` and of its backward pass by autograd, in the same order, so that the results
are equal to the last bit; but for all domains at once where their minibatches have the same size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .outer import CACHE_BLOCK, FEW_ROWS, of_vectors
from .product import moments_by_products, pull_back_products
from .uses import Direct, Outer, Term

PRODUCTS = 2**20
"""Per-sample gradient entries of a domain, up to which matrix products count as small."""

_kept = threading.local()


class Small(NamedTuple):
    """The variances of one parameter."""

    variance: Tensor  # [D, ...], without a graph
    pull_back: Callable[[Tensor], tuple[Tensor | None, ...]]
    """Maps the gradient at `variance` to those at the term's inputs; None if none is required."""


def small(terms: Sequence[Term], sizes: Sequence[int], limit: int) -> Small | None:
    """Variances of a parameter's per-sample gradients within each domain; None if not small.

    Args:
        terms: One for each use of the parameter; only a single one is small.
        sizes: The D sizes.
        limit: Maximum number of entries of a temporary tensor.
    """
    if len(terms) != 1:
        return None
    (term,), largest = terms, max(sizes)
    limit = min(limit, CACHE_BLOCK)
    if isinstance(term, Direct):
        fits = largest * term.gradients[0].numel() <= limit
        return _of_gradients(term.gradients, sizes, limit) if fits else None
    if not isinstance(term, Outer) or term.factors is not of_vectors:
        return None
    left, right = term.tensors
    if left.ndim != 2 or right.ndim != 2 or left.dtype != right.dtype:
        return None
    entries = largest * left.shape[1] * right.shape[1]
    if left.shape[1] > FEW_ROWS:
        return _by_products(left, right, sizes) if entries <= PRODUCTS else None
    return _of_vectors(left, right, sizes, limit) if entries <= limit else None


def _of_gradients(gradients: Tensor, sizes: Sequence[int], limit: int) -> Small:
    """As `moments_of_gradients`, of gradients [N, ...]."""
    given, parts = gradients.detach().flatten(1), []
    for _, own, shape in _groups(sizes, given.shape[1], limit):
        domains = given[own].reshape(*shape, -1)
        deviation = domains - domains.mean(1, keepdim=True)
        parts.append((deviation, deviation.square().mean(1)))
    variance = parts[0][1] if len(parts) == 1 else torch.cat([own for _, own in parts])

    def pull_back(grad: Tensor) -> tuple[Tensor | None, ...]:
        if not gradients.requires_grad:
            return (None,)
        found = torch.empty_like(given)
        grad = grad.flatten(1)
        for (deviation, _), (domains, own, shape) in zip(
            parts, _groups(sizes, given.shape[1], limit), strict=True
        ):
            n = shape[1]
            at_deviation = (grad[domains] / n).unsqueeze(1) * (2 * deviation)
            at_mean = at_deviation.sum(1, keepdim=True).neg_().div_(n)
            torch.add(at_deviation, at_mean, out=found[own].view(*shape, -1))
        return (found.view_as(gradients),)

    return Small(variance.reshape(-1, *gradients.shape[1:]), pull_back)


def _of_vectors(left: Tensor, right: Tensor, sizes: Sequence[int], limit: int) -> Small:
    """As `outer_moments`, of vectors [N, R] and [N, K] with few rows: each g_i is built."""
    a, b = left.detach(), right.detach()
    rows, columns = a.shape[1], b.shape[1]
    groups = [
        (domains, own, a[own].reshape(*shape, rows, 1), b[own].reshape(*shape, 1, columns))
        for domains, own, shape in _groups(sizes, rows * columns, limit)
    ]
    mean, shift, variance = (a.new_empty(len(sizes), rows, columns) for _ in range(3))
    for domains, _, u, v in groups:
        n, (work, _) = u.shape[1], _workspace(a, (*u.shape[:3], columns))
        torch.mul(u, v, out=work)
        around = torch.mean(work, 1, out=mean[domains])
        torch.addcmul(around.neg().unsqueeze(1), u, v, out=work)  # deviations
        change = torch.sum(work, 1, out=shift[domains]).div_(n)
        around.add_(change)
        squares = torch.sum(work.square_(), 1, out=variance[domains])
        squares.div_(n).addcmul_(change, change, value=-1).clamp_(min=0)

    def pull_back(grad: Tensor) -> tuple[Tensor | None, ...]:
        at_left, at_right = torch.empty_like(a), torch.empty_like(b)
        for domains, own, u, v in groups:
            n, (work, other) = u.shape[1], _workspace(a, (*u.shape[:3], columns))
            torch.addcmul(mean[domains].neg().unsqueeze(1), u, v, out=work)
            work.mul_((grad[domains] * (2 / n)).unsqueeze(1))
            if left.requires_grad:
                torch.sum(torch.mul(work, v, out=other), -1, out=at_left[own].view(*u.shape[:3]))
            if right.requires_grad:
                torch.sum(work.mul_(u), 2, out=at_right[own].view(*v.shape[:2], columns))
        return (
            at_left if left.requires_grad else None,
            at_right if right.requires_grad else None,
        )

    return Small(variance, pull_back)


def _by_products(left: Tensor, right: Tensor, sizes: Sequence[int]) -> Small | None:
    """As `outer_moments`, of vectors [N, R] and [N, K] with many rows; None if one is not exact.

    Domain by domain: the last bits of a matrix product depend on where its result lies in memory.
    """
    pairs = list(zip(left.split(list(sizes)), right.split(list(sizes)), strict=True))
    found = [moments_by_products(a.detach(), b.detach()) for a, b in pairs]
    if any(len(rows) for _, _, rows in found):
        return None
    variance = torch.stack([own for _, own, _ in found])

    def pull_back(grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = []
        for (a, b), (mean, _, _), own in zip(pairs, found, grad, strict=True):
            scale = own * (2 / len(a))
            parts.append(pull_back_products(a, b, scale, -scale * mean))
        return tuple(
            None if side[0] is None else torch.cat(side) for side in zip(*parts, strict=True)
        )

    return Small(variance, pull_back)


def _workspace(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two tensors for the gradients of a group, overwritten by the next call of this thread.

    On the CPU they are kept: the first touch of new memory takes longer than all operations on it.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape), like.new_empty(shape)
    kept: dict[torch.dtype, tuple[Tensor, Tensor]] = _kept.__dict__.setdefault("by_dtype", {})
    if like.dtype not in kept:
        kept[like.dtype] = (like.new_empty(CACHE_BLOCK), like.new_empty(CACHE_BLOCK))
    first, second = kept[like.dtype]
    entries = math.prod(shape)
    return first[:entries].view(shape), second[:entries].view(shape)


def _groups(
    sizes: Sequence[int], entries: int, limit: int
) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Neighboring domains of the same size, as many as stay within the limit, but at least one.

    Args:
        sizes: The D sizes.
        entries: Of one sample's gradient.
        limit: Maximum number of entries of the group's gradients.

    Yields:
        The domains, their samples, and the numbers of domains and of samples of each.
    """
    start = sample = 0
    while start < len(sizes):
        n, end = sizes[start], start + 1
        while end < len(sizes) and sizes[end] == n and (end + 1 - start) * n * entries <= limit:
            end += 1
        count = end - start
        yield slice(start, end), slice(sample, sample + count * n), (count, n)
        start, sample = end, sample + count * n
