"""Mean and variance of a parameter's per-sample gradients within each domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .outer import outer_moments
from .rules import Direct, Outer, Term


class Moments(NamedTuple):
    """Moments of the per-sample gradients of one parameter."""

    mean: Tensor  # [D, *shape of the parameter]
    variance: Tensor  # [D, *shape of the parameter], centred, divided by n


def moments_of_terms(
    terms: Sequence[Term], shape: torch.Size, sizes: Sequence[int], limit: int
) -> Moments:
    """Moments of the sum of `terms`, the uses of one parameter of the given shape.

    Args:
        terms: At least one.
        shape: Of the parameter.
        sizes: The D sizes.
        limit: Most entries of a temporary tensor.
    """
    outers = [term for term in terms if isinstance(term, Outer)]
    if len(outers) == len(terms):
        return _moments_of_outers(outers, shape, sizes, limit)
    gradients = [t.gradients if isinstance(t, Direct) else _materialise(t, shape) for t in terms]
    return moments_of_gradients(torch.stack(gradients).sum(0) if terms[1:] else gradients[0], sizes)


def moments_of_gradients(gradients: Tensor, sizes: Sequence[int]) -> Moments:
    """Moments of per-sample gradients [N, *shape] that are at hand."""
    means, variances = [], []
    for domain in gradients.split(list(sizes)):
        mean = domain.mean(0)
        means.append(mean)
        variances.append((domain - mean).square().mean(0))
    return Moments(torch.stack(means), torch.stack(variances))


def _moments_of_outers(
    outers: Sequence[Outer], shape: torch.Size, sizes: Sequence[int], limit: int
) -> Moments:
    counts = [len(outer.tensors) for outer in outers]

    def factors(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        parts, start = [], 0
        for outer, count in zip(outers, counts, strict=True):
            parts.append(outer.factors(*tensors[start : start + count]))
            start += count
        if len(parts) == 1:
            return parts[0]
        lefts, rights = zip(*parts, strict=True)
        return torch.cat(lefts, -1), torch.cat(rights, -1)  # uses add up as positions do

    tensors = [tensor for outer in outers for tensor in outer.tensors]
    mean, variance = outer_moments(factors, sizes, limit, *tensors)
    return Moments(mean.reshape(-1, *shape), variance.reshape(-1, *shape))


def _materialise(outer: Outer, shape: torch.Size) -> Tensor:
    left, right = outer.factors(*outer.tensors)
    return (left @ right.transpose(-1, -2)).reshape(-1, *shape)
