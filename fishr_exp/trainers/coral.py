"""CORAL: match the means and covariances of the domains' features."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._distances import coral_distance
from fishr_exp.trainers._one_pass import ForwardPass, Penalty
from fishr_exp.trainers._terms import of_all_ranks


class Coral(Penalty):
    """Penalize the distance of the domains' first two moments of the features.

        objective = R + gamma · mean over pairs (e, e') of d(e, e')
        d(e, e') = mean_F (μ_e − μ_e')² + mean_FxF (Σ_e − Σ_e')²

    where μ_e [F] and Σ_e [F, F] are mean and unbiased covariance of the features of domain e.

    For the arguments, see `Penalty`.

    Source: Sun and Saenko (ECCV 2016 workshops, arXiv:1607.01719); for several domains and with
    the means, Gulrajani and Lopez-Paz (ICLR 2021, arXiv:2007.01434).

    Departs: from the first paper, which has no term of the means, and divides by 4 F². As in
    DomainBed, both terms are means.
    """

    printed_name = "CORAL"
    min_domains = 2

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean distance over the pairs of domains."""
        return coral_distance(of_all_ranks(forward.batch, forward.features))
