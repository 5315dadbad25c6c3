"""Empirical risk minimisation, the baseline."""

from __future__ import annotations

from torch import nn

from fishr_exp.contracts import Batch, Model, Objective
from fishr_exp.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import mean_risk, squared_norm


class Erm(nn.Module):
    """Minimise the mean risk of the training domains.

        objective = (1/D) Σ_e R_e + l2 · Σ‖w‖²

    Args:
        l2: Weight of the squared norm of all parameters, >= 0. It is a term of the loss, as in the
            Colored MNIST script; an optimizer's `weight_decay` of 2·l2 has the same gradient.

    Raises:
        ConfigError: If `l2` is negative.

    Source: Vapnik (1998); as a baseline, Gulrajani and Lopez-Paz (arXiv:2007.01434).
    """

    min_domains = 1

    def __init__(self, l2: float = 0.0) -> None:
        super().__init__()
        if not l2 >= 0:
            raise ConfigError("trainer.l2", l2, "must be 0 or more")
        self.l2 = l2

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; `step` counts optimizer updates made so far."""
        del step
        risk = mean_risk(batch, per_sample_losses(model(batch.x), batch.y))
        total = risk + self.l2 * squared_norm(model) if self.l2 else risk
        return Objective(total, {"risk": risk, "objective": total})
