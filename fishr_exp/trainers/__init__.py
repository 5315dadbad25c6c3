"""One small file per method, and the terms that methods share."""

from fishr_exp.trainers._terms import (
    ForwardPass,
    Penalized,
    Schedule,
    domain_gradients,
    domain_means,
    domain_risks,
    mean_risk,
    of_all_ranks,
    with_l2,
)

__all__ = [
    "ForwardPass",
    "Penalized",
    "Schedule",
    "domain_gradients",
    "domain_means",
    "domain_risks",
    "mean_risk",
    "of_all_ranks",
    "with_l2",
]
