"""Methods that combine the gradient of the risk with the one at perturbed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishr_exp.core.contracts import Batch, Model, Objective, Trainer, trainable
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import moved, norm, risk_and_gradients
from fishr_exp.trainers._terms import check_weight, mean_risk


class Perturbed(Trainer):
    """A direction from the gradients at the weights and at perturbed ones: two passes a step.

        θ' = θ + s · g,    g = ∇R(θ),    g' = ∇R(θ'),    direction from g and g'

    where R is the mean risk and θ are all trainable parameters. The perturbed pass leaves
    BatchNorm's statistics as they were. A subclass defines `scale`, which is s, and `direction`;
    it logs R(θ') as `perturbed_risk`. While `stays`, the method is ERM: one pass.

    Args:
        rho: Radius of the perturbation, finite and >= 0.
        loss: Of each sample.

    Raises:
        ConfigError: If `rho` is outside its range.
    """

    def __init__(self, rho: float, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        check_weight("trainer.rho", rho)
        self.rho = rho

    @property
    def stays(self) -> bool:
        """Whether the weights are not perturbed at all."""
        return self.rho == 0

    def scale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return s, a scalar: of a step of length `rho`; 0 where the gradient is 0."""
        length = norm(gradients)
        return torch.where(length > 0, self.rho / length, 0)

    def direction(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """Return the direction from g and g', one tensor for each parameter."""
        raise NotImplementedError

    def recorded(self, risk: Tensor, perturbed: Tensor) -> Tensor:
        """Return the objective's value, from R(θ) and R(θ')."""
        del risk
        return perturbed

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the direction for one batch; `step` counts the steps made so far."""
        del step
        if self.stays:
            risk = mean_risk(batch, self.loss(model(batch.x), batch.y))
            return Objective(risk, {"risk": risk, "perturbed_risk": risk, "objective": risk})
        parameters = trainable(model, self)
        risk, first = risk_and_gradients(model, batch, self.loss, parameters)
        scale = self.scale(first)
        with moved(model, parameters, [scale * gradient for gradient in first]):
            perturbed, second = risk_and_gradients(model, batch, self.loss, parameters)
        total = self.recorded(risk, perturbed)
        logs = {"risk": risk, "perturbed_risk": perturbed, "objective": total}
        return Objective(total, logs, gradients=self.direction(first, second))
