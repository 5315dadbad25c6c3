"""Mean and variance of a parameter's per-sample gradients within each domain."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .outer import outer_moments
from .single import Single, gradients_of_single, single_moments
from .uses import Direct, Outer, Term


class Moments(NamedTuple):
    """Moments of the per-sample gradients of one parameter."""

    mean: Tensor  # [D, *shape of the parameter]
    variance: Tensor  # [D, *shape of the parameter], or [D, P, P]; centered, divided by n


def moments_of_terms(
    terms: Sequence[Term],
    shape: torch.Size,
    sizes: Sequence[int],
    limit: int,
    covariance: bool = False,
) -> Moments:
    """Moments of the sum of `terms`, one for each use of a parameter, all of one kind.

    Args:
        terms: At least one.
        shape: Of the parameter.
        sizes: The D sizes.
        limit: Maximum number of entries of a temporary tensor.
        covariance: Whether to compute the whole covariance; keeps all per-sample gradients.

    Raises:
        UnsupportedError: If the covariance of a convolution is requested.
    """
    singles = [term for term in terms if isinstance(term, Single)]
    if singles and covariance:
        raise UnsupportedError(
            "statistic='covariance': not supported for convolutions; choose a different scope"
        )
    if singles:
        return Moments(*single_moments(singles, sizes, limit))
    direct = [term.gradients for term in terms if isinstance(term, Direct)]
    if direct:
        return moments_of_gradients(functools.reduce(torch.add, direct), sizes, covariance)
    joined = _joined([term for term in terms if isinstance(term, Outer)])
    if covariance:
        return moments_of_gradients(gradients_of_terms([joined], shape), sizes, covariance)
    mean, variance = outer_moments(joined.factors, sizes, limit, *joined.tensors)
    return Moments(mean.reshape(-1, *shape), variance.reshape(-1, *shape))


def moments_of_gradients(
    gradients: Tensor, sizes: Sequence[int], covariance: bool = False
) -> Moments:
    """Moments of given per-sample gradients [N, *shape]."""
    means, variances = [], []
    for domain in gradients.split(list(sizes)):
        mean = domain.mean(0)
        deviation = domain - mean
        means.append(mean)
        if covariance:
            flat = deviation.flatten(1)  # [n, P]
            variances.append(flat.t() @ flat / len(flat))
        else:
            variances.append(deviation.square().mean(0))
    return Moments(torch.stack(means), torch.stack(variances))


def gradients_of_terms(terms: Sequence[Term], shape: torch.Size) -> Tensor:
    """Per-sample gradients [N, *shape] of the sum of `terms`, all of them in memory.

    Differentiable, and so are their gradients.
    """
    total = None
    for term in terms:
        if isinstance(term, Direct):
            own = term.gradients
        elif isinstance(term, Outer):
            left, right = term.factors(*term.tensors)
            own = (left.transpose(-1, -2) @ right).reshape(-1, *shape)
        else:
            own = gradients_of_single(term)
        total = own if total is None else total + own
    assert total is not None
    return total


def weighted_sum(term: Term, weights: Tensor, shape: torch.Size, limit: int) -> Tensor:
    """Sum over the samples of weight times gradient; not differentiable.

    Args:
        term: Of N samples.
        weights: [N].
        shape: Of the parameter.
        limit: Maximum number of entries of a temporary tensor.

    Returns:
        [*shape].
    """
    if isinstance(term, Direct):
        return torch.tensordot(weights.to(term.gradients.dtype), term.gradients, 1)
    if isinstance(term, Single):
        over = weights.to(term.delta.dtype).reshape(-1, *(1,) * (term.delta.ndim - 1))
        return term.gradient(over * term.delta, term.x)  # linear in delta, and sums over samples

    left, right = term.factors(*(tensor[:1] for tensor in term.tensors))
    step = max(1, limit // max(1, left.numel(), right.numel()))  # samples at a time
    total = left.new_zeros(())
    for start in range(0, len(weights), step):
        samples = slice(start, start + step)
        left, right = term.factors(*(tensor[samples] for tensor in term.tensors))
        left = weights[samples].to(left.dtype).reshape(-1, 1, 1, 1) * left
        total = total + torch.einsum("ngtr,ngtk->grk", left, right)
    return total.reshape(shape)


def _joined(outers: Sequence[Outer]) -> Outer:
    """Several uses of one parameter as one: they are summed like positions."""
    if len(outers) == 1:
        return outers[0]
    counts = [len(outer.tensors) for outer in outers]

    def factors(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        parts, start = [], 0
        for outer, count in zip(outers, counts, strict=True):
            parts.append(outer.factors(*tensors[start : start + count]))
            start += count
        lefts, rights = zip(*parts, strict=True)
        return torch.cat(lefts, 2), torch.cat(rights, 2)

    return Outer(factors, tuple(tensor for outer in outers for tensor in outer.tensors))
