"""MMD: match the distributions of the domains' features by Gaussian kernels."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._distances import mmd_distance
from fishr_exp.trainers._one_pass import ForwardPass, Penalty
from fishr_exp.trainers._terms import of_all_ranks


class Mmd(Penalty):
    """Penalize the maximum mean discrepancy of the domains' features.

        objective = R + gamma · mean over pairs (e, e') of (k̄_ee + k̄_e'e' − 2 k̄_ee')
        k(a, b) = Σ_s exp(−s ‖a − b‖²),    s = 0.001, 0.01, …, 1000

    where k̄_ee' is the mean of k over all pairs of a sample of e and one of e'.

    For the arguments, see `Penalty`.

    Source: Li, Pan, Wang and Kot (CVPR 2018), whose autoencoder is left out as in Gulrajani and
    Lopez-Paz (ICLR 2021, arXiv:2007.01434).
    """

    printed_name = "MMD"
    min_domains = 2

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean discrepancy over the pairs of domains."""
        return mmd_distance(of_all_ranks(forward.batch, forward.features))
