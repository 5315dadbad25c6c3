"""IB-ERM: ERM with an information bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor

from fishr_exp.trainers._one_pass import ForwardPass, Penalty, Schedule
from fishr_exp.trainers._terms import of_all_ranks


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
        by_domain = of_all_ranks(forward.batch, forward.features)
        return torch.stack([features.var(0).mean() for features in by_domain]).mean()
