"""One small file per method, and the terms that methods share."""

from fishr_exp.trainers._one_pass import (
    ForwardPass,
    OnePass,
    Part,
    Penalized,
    Penalty,
    Schedule,
    with_penalties,
)
from fishr_exp.trainers._terms import (
    domain_means,
    domain_risks,
    mean_risk,
    of_all_ranks,
    with_l2,
)

__all__ = [
    "ForwardPass",
    "OnePass",
    "Part",
    "Penalized",
    "Penalty",
    "Schedule",
    "domain_means",
    "domain_risks",
    "mean_risk",
    "of_all_ranks",
    "with_l2",
    "with_penalties",
]
