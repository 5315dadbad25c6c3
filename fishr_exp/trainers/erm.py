"""Empirical risk minimization, the baseline."""

from __future__ import annotations

from fishr_exp.core.contracts import Batch, Model, Objective, Trainer
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._terms import check_l2, mean_risk, with_l2


class Erm(Trainer):
    """Minimize the mean risk of the training domains.

        objective = (1/D) Σ_e R_e + l2 · Σ‖w‖²

    Args:
        l2: Weight of the squared norm of all parameters, >= 0. It is a term of the loss, as in the
            Colored MNIST script; an optimizer's `weight_decay` of 2·l2 has the same gradient.
        loss: Of each sample.

    Raises:
        ConfigError: If `l2` is negative.

    Source: Vapnik (1998); as a baseline, Gulrajani and Lopez-Paz (arXiv:2007.01434).
    """

    printed_name = "ERM"

    def __init__(self, l2: float = 0.0, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        check_l2(l2)
        self.l2 = l2

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; `step` counts optimizer updates made so far."""
        del step
        risk = mean_risk(batch, self.loss(model(batch.x), batch.y))
        total = with_l2(risk, self.l2, model)
        return Objective(total, {"risk": risk, "objective": total})
