"""IB-ERM: ERM with an information bottleneck."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._information_bottleneck import bottleneck
from fishr_exp.trainers._one_pass import ForwardPass, Penalty, Schedule


class IbErm(Penalty):
    """Penalize the variance of the features within each domain.

        objective = R + gamma · (1/D) Σ_e mean_F var_e(f)

    with the unbiased variance over the samples of domain e. Before `anneal_steps` the weight is 0;
    there the optimizer is made from scratch.

    For the arguments, see `Penalty`.

    Source: Ahuja et al. (NeurIPS 2021, arXiv:2106.06607); in this form DomainBed.
    """

    printed_name = "IB-ERM"
    schedule = Schedule(resets_optimizer=True)

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean over domains and features of the variance."""
        return bottleneck(forward)
