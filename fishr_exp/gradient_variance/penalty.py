"""The penalty: the distance of the domains' variances from their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import UnsupportedError


def penalty(
    variances: Mapping[str, Tensor],
    *,
    over_parameters: Literal["sum", "mean"] = "sum",
    over_domains: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Squared distance of the domains' variances to their mean over the domains.

    penalty = mean_e sum_p (v_e[p] - mean_e v_e[p])^2

    Args:
        variances: By parameter, [D, *shape of the parameter].
        over_parameters: `"sum"`, the squared norm of the paper; `"mean"`, divided by the number
            of all parameters, as DomainBed does.
        over_domains: `"mean"`, as in the paper; `"sum"`, as the paper's Colored MNIST script does.

    Returns:
        A scalar; 0 for one domain.

    Raises:
        UnsupportedError: If there are no variances, or a convention is unknown.

    Source: Ramé et al. 2022 (arXiv:2109.02934), the Fishr penalty, with the defaults.
    """
    if not variances:
        raise UnsupportedError("variances: empty; a penalty needs at least one parameter")
    if over_parameters not in ("sum", "mean"):
        raise UnsupportedError(f"over_parameters={over_parameters!r}: expected 'sum' or 'mean'")
    if over_domains not in ("mean", "sum"):
        raise UnsupportedError(f"over_domains={over_domains!r}: expected 'mean' or 'sum'")
    entries = sum(v[0].numel() for v in variances.values())
    domains = len(next(iter(variances.values())))
    total = torch.stack([squared_distance(v) for v in variances.values()]).sum()
    return total / divisor(entries, domains, over_parameters, over_domains)


def divisor(entries: int, domains: int, over_parameters: str, over_domains: str) -> int:
    """Return the divisor of the sum of all squared distances in a penalty.

    Args:
        entries: P, the number of entries of all parameters together.
        domains: D.
        over_parameters: As for `penalty`.
        over_domains: As for `penalty`.
    """
    p = entries if over_parameters == "mean" else 1
    return p * domains if over_domains == "mean" else p


def squared_distance(v: Tensor) -> Tensor:
    """Squared distance of the v_e to their mean, over all domains: sum_e ||v_e - mean_e v_e||^2.

    This is the penalty of one parameter with `over_domains="sum"`, and its sum over the parameters
    is the penalty. `gradient_variance` accepts this function as `reduce`.

    Args:
        v: [D, ...].
    """
    return _SquaredDistance.apply(v)


def squared_distance_with_gradient(v: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance and its gradient at v, without a graph.

    Args:
        v: [D, ...].
    """
    difference = v - v.mean(0)
    return difference.square().sum(), 2 * difference


class _SquaredDistance(torch.autograd.Function):
    """sum_e ||v_e - mean_e v_e||^2; saves only v, since its gradient is 2 (v_e - mean_e v_e)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(v)
        return (v - v.mean(0)).square_().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (v,) = ctx.saved_tensors
        return 2 * grad * (v - v.mean(0))
