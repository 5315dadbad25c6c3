"""V-REx: let the domains' risks be equal."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fishr_exp.contracts import Batch, Model, Objective
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._terms import (
    Schedule,
    check_choice,
    check_penalty,
    domain_risks,
    with_l2,
)

CONVENTIONS = {
    "colored_mnist": Schedule(weight_before=1.0, divides_by_weight=True),
    "domainbed": Schedule(weight_before=1.0, resets_optimizer=True),
}


class Vrex(nn.Module):
    """Penalise the variance of the domains' risks.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e (R_e − R)²,    R = (1/D) Σ_e R_e

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        convention: `domainbed` (as above; the optimizer is reset at `anneal_steps`) or
            `colored_mnist` (IRM's script with the V-REx penalty, the squared differences summed
            over all pairs of domains, D² times the variance; the objective is divided by a weight
            above 1).
        anneal_steps: Optimizer updates before gamma acts; until then the weight is 1.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Krueger et al. (ICML 2021, arXiv:2003.00688).

    Departs: the scripts have two domains; for more, `colored_mnist` sums over pairs.
    """

    min_domains = 2

    def __init__(
        self,
        gamma: float,
        convention: Literal["colored_mnist", "domainbed"] = "domainbed",
        anneal_steps: int = 0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__()
        check_penalty(gamma, anneal_steps, l2)
        check_choice("trainer.convention", convention, CONVENTIONS)
        self.gamma = gamma
        self.convention: str = convention
        self.schedule = CONVENTIONS[convention]
        self.anneal_steps = anneal_steps
        self.l2 = l2
        self.loss = loss
        self.reset_optimizer_at = self.schedule.reset_at(gamma, anneal_steps)

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; `step` counts optimizer updates made so far."""
        weight = self.schedule.weight(self.gamma, self.anneal_steps, step)
        risks = domain_risks(batch, self.loss(model(batch.x), batch.y))  # [D]
        risk, penalty = risks.mean(), self._penalty(risks)
        total = self.schedule.total(with_l2(risk, self.l2, model), penalty, weight)
        return Objective(total, {"risk": risk, "penalty": penalty, "objective": total})

    def _penalty(self, risks: Tensor) -> Tensor:
        variance = (risks - risks.mean()).square().mean()
        return len(risks) ** 2 * variance if self.convention == "colored_mnist" else variance
