"""IRMv1: let the classifier's scale be optimal in every domain at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fishr_exp.contracts import Batch, Model, Objective
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._terms import (
    Schedule,
    check_choice,
    check_penalty,
    domain_means,
    mean_risk,
    with_l2,
)

CONVENTIONS = {
    "colored_mnist": Schedule(weight_before=1.0, divides_by_weight=True),
    "domainbed": Schedule(weight_before=1.0, resets_optimizer=True),
}


class Irm(nn.Module):
    """Penalise the gradient of each domain's risk by a scale of the logits, at scale 1.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e d_e²,    d_e = ∂R_e(s · logits) / ∂s at s = 1

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        convention: `colored_mnist` (IRM's script: the objective is divided by a weight above 1) or
            `domainbed` (d_e² is the product of the d_e of the even and of the odd samples, which
            is unbiased, may be negative, and needs 2 samples of each domain; the optimizer is reset
            at `anneal_steps`).
        anneal_steps: Optimizer updates before gamma acts; until then the weight is 1.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Arjovsky, Bottou, Gulrajani and Lopez-Paz (2019, arXiv:1907.02893), IRMv1.
    """

    min_domains = 1

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
        logits = model(batch.x)
        losses = self.loss(logits, batch.y)
        risk = mean_risk(batch, losses)
        penalty = self._penalty(batch, logits, losses)
        total = self.schedule.total(with_l2(risk, self.l2, model), penalty, weight)
        return Objective(total, {"risk": risk, "penalty": penalty, "objective": total})

    def _penalty(self, batch: Batch, logits: Tensor, losses: Tensor) -> Tensor:
        """Mean over the domains of d_e²; the derivative by the scale is z · ∂l/∂z, a sample."""
        (delta,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)  # [N, C]
        slopes = batch.by_domain((logits * delta).sum(1))  # D x [n]
        if self.convention == "colored_mnist":
            return domain_means(slopes).square().mean()
        even, odd = (domain_means([slope[i::2] for slope in slopes]) for i in (0, 1))
        return (even * odd).mean()
