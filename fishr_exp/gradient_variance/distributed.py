"""Moments over all ranks: each rank holds a part of every domain's minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce

from .moments import Moments


def over_all_ranks(
    moments: Mapping[str, Moments], sizes: Sequence[int]
) -> tuple[dict[str, Moments], tuple[int, ...]]:
    """Merge the moments of all ranks, with gradients.

    n = sum_r n_r; mean = sum_r n_r mean_r / n;
    variance = sum_r n_r (variance_r + (mean_r - mean)^2) / n.

    The gradient of what every rank computes from the result is the gradient of the sum over ranks
    of it; data-parallel training averages gradients over ranks, which makes that right.

    Args:
        moments: By parameter, of this rank's samples.
        sizes: This rank's D sizes.

    Returns:
        The moments by parameter, and the D sizes over all ranks.
    """
    first = next(iter(moments.values())).mean
    own = torch.tensor(sizes, device=first.device, dtype=torch.float64)
    total = own.clone()
    distributed.all_reduce(total)
    weights = own / total  # [D]
    merged = {name: _merged(m, weights.to(m.mean.dtype)) for name, m in moments.items()}
    return merged, tuple(int(n) for n in total.tolist())


def _merged(moments: Moments, weights: Tensor) -> Moments:
    weights = weights.reshape(-1, *(1,) * (moments.mean.ndim - 1))
    mean = all_reduce(weights * moments.mean)
    variance = all_reduce(weights * (moments.variance + (moments.mean - mean).square()))
    return Moments(mean, variance)
