"""GroupDRO: weigh the domains by how large their risks have been."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fishr_exp.core.contracts import Facts, Model
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass
from fishr_exp.trainers._terms import check_choice, check_weight

CONVENTIONS = ("domainbed", "domainbed_2020")


class GroupDro(OnePass):
    """Minimize a weighted risk, in which the weights of domains with large risks grow.

        q_e ← q_e · exp(eta · R_e),    q ← q / Σ_e q_e,    objective = Σ_e q_e R_e

    The weights start equal, and are updated at each step, before they are used.

    Args:
        eta: Step size of the weights, finite and >= 0; 0 keeps them equal.
        convention: `domainbed`, or `domainbed_2020`, whose objective was divided by D once more.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Sagawa, Koh, Hashimoto and Liang (ICLR 2020, arXiv:1911.08731), Algorithm 1.
    """

    printed_name = "GroupDRO"
    min_domains = 2
    weights: Tensor

    def __init__(
        self,
        eta: float = 0.01,
        convention: Literal["domainbed", "domainbed_2020"] = "domainbed",
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        check_weight("trainer.eta", eta)
        self.eta, self.convention = eta, convention

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Start with equal weights."""
        self.register_buffer("weights", torch.ones(len(facts.domains)))
        return model

    def risk(self, forward: ForwardPass) -> Tensor:
        """The weighted risk; it updates the weights."""
        risks = forward.risks
        given = risks.detach()
        grown = self.weights * torch.exp(self.eta * (given - given.max()))  # no overflow
        self.weights = grown / grown.sum()
        weighted = (self.weights * risks).sum()
        return weighted / len(risks) if self.convention == "domainbed_2020" else weighted
