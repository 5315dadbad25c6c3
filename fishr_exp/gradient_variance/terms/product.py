"""Moments of per-sample gradients that are outer products of two vectors, by matrix products.

With g_i = left_i right_i^T of vectors, mean_i g_i^2 = (left^2)^T (right^2) / n: two matrix products
give mean and second moment, and no per-sample gradient is ever built. Their difference is the
variance, which loses digits if the mean is large; such rows are left to the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**20  # entries of a factor processed at a time, so that their squares stay in the cache
SMALLEST_SHARE = 0.01
"""A variance below this fraction of the second moment has lost at least two digits."""


def moments_by_products(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments over the samples of one domain.

    Args:
        left: [n, R].
        right: [n, K].

    Returns:
        Mean [R, K], variance [R, K], and the indices of the rows whose variance is not exact.
    """
    mean = left.new_zeros(left.shape[1], right.shape[1])
    second = torch.zeros_like(mean)
    for a, b in _blocks(left, right):
        mean.addmm_(a.t(), b)
        second.addmm_((a * a).t(), b * b)
    mean /= len(left)
    second /= len(left)
    variance = torch.addcmul(second, mean, mean, value=-1)
    inexact = (variance < SMALLEST_SHARE * second).any(1)
    return mean, variance, inexact.nonzero().squeeze(1)


def pull_back_products(
    left: Tensor, right: Tensor, scale: Tensor, constant: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients at left and right, given dg_i = scale * g_i + constant with g_i = left right^T.

    dleft_i = left_i * (scale right_i^2) + constant right_i, and dright_i analogously; None if
    the factor needs no gradient.

    Args:
        left: [n, R].
        right: [n, K].
        scale: [R, K].
        constant: [R, K].
    """
    at_left = _pull_back(left, right, scale.t(), constant.t()) if left.requires_grad else None
    return at_left, _pull_back(right, left, scale, constant) if right.requires_grad else None


def _pull_back(factor: Tensor, other: Tensor, scale: Tensor, constant: Tensor) -> Tensor:
    """Gradient at one factor [n, K], given the other [n, R], and scale and constant as [R, K]."""
    factor, other = factor.detach(), other.detach()
    grad = torch.empty_like(factor)
    for a, b, at_a in _blocks(factor, other, grad):
        torch.mm(b * b, scale, out=at_a).mul_(a).addmm_(b, constant)
    return grad


def _blocks(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    length = max(1, BLOCK // max(tensor.shape[1] for tensor in tensors))
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)
