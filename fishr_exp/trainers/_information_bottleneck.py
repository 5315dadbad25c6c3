"""The penalty that IB-ERM and IB-IRM share."""

from __future__ import annotations

import torch
from torch import Tensor

from fishr_exp.trainers._one_pass import ForwardPass
from fishr_exp.trainers._terms import of_all_ranks


def bottleneck(forward: ForwardPass) -> Tensor:
    """Mean over domains and features of the unbiased variance of a feature in a domain."""
    by_domain = of_all_ranks(forward.batch, forward.features)
    return torch.stack([features.var(0).mean() for features in by_domain]).mean()
