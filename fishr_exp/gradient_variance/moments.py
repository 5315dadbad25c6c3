"""Mean and variance of a parameter's per-sample gradients within each domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .outer import outer_moments
from .uses import Outer, Term


class Moments(NamedTuple):
    """Moments of the per-sample gradients of one parameter."""

    mean: Tensor  # [D, *shape of the parameter]
    variance: Tensor  # [D, *shape of the parameter], centred, divided by n


def moments_of_terms(
    terms: Sequence[Term], shape: torch.Size, sizes: Sequence[int], limit: int
) -> Moments:
    """Moments of the sum of `terms`, one for each use of a parameter.

    Args:
        terms: At least one.
        shape: Of the parameter.
        sizes: The D sizes.
        limit: Most entries of a temporary tensor.
    """
    outers = [term for term in terms if isinstance(term, Outer)]
    if len(outers) < len(terms):
        return moments_of_gradients(gradients_of_terms(terms, shape), sizes)
    joined = _joined(outers)
    mean, variance = outer_moments(joined.factors, sizes, limit, *joined.tensors)
    return Moments(mean.reshape(-1, *shape), variance.reshape(-1, *shape))


def moments_of_gradients(gradients: Tensor, sizes: Sequence[int]) -> Moments:
    """Moments of per-sample gradients [N, *shape] that are at hand."""
    means, variances = [], []
    for domain in gradients.split(list(sizes)):
        mean = domain.mean(0)
        means.append(mean)
        variances.append((domain - mean).square().mean(0))
    return Moments(torch.stack(means), torch.stack(variances))


def gradients_of_terms(terms: Sequence[Term], shape: torch.Size) -> Tensor:
    """Per-sample gradients [N, *shape], added up over the terms."""
    gradients = [_materialise(t, shape) if isinstance(t, Outer) else t.gradients for t in terms]
    return torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0]


def first_samples(terms: Sequence[Term], count: int) -> list[Term]:
    """Restrict terms to the first `count` samples."""
    return [
        Outer(t.factors, tuple(x[:count] for x in t.tensors))
        if isinstance(t, Outer)
        else type(t)(t.gradients[:count])
        for t in terms
    ]


def _materialise(outer: Outer, shape: torch.Size) -> Tensor:
    left, right = outer.factors(*outer.tensors)
    return (left @ right.transpose(-1, -2)).reshape(-1, *shape)


def _joined(outers: Sequence[Outer]) -> Outer:
    """Several uses of one parameter as one: they add up as positions do."""
    if len(outers) == 1:
        return outers[0]
    counts = [len(outer.tensors) for outer in outers]

    def factors(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        parts, start = [], 0
        for outer, count in zip(outers, counts, strict=True):
            parts.append(outer.factors(*tensors[start : start + count]))
            start += count
        lefts, rights = zip(*parts, strict=True)
        return torch.cat(lefts, -1), torch.cat(rights, -1)

    return Outer(factors, tuple(tensor for outer in outers for tensor in outer.tensors))
