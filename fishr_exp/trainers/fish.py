"""Fish: go a part of the way that one update after another on the domains goes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fishr_exp.core.contracts import Batch, Model, Objective, Trainer, trainable
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import each_domain
from fishr_exp.trainers._terms import mean_risk


class Fish(Trainer):
    """Update the weights on one domain after another, and interpolate to where they were before.

        θ' = θ after an update of the optimizer on R_1, then on R_2, …, R_D
        θ ← θ + meta_lr · (θ' − θ)

    To first order, this raises the inner products of the domains' gradients. A step is D updates
    of the run's optimizer, whose state is kept. Floating-point buffers, as BatchNorm's statistics,
    are interpolated like the weights.

    Args:
        meta_lr: Part of the way, in (0, 1]; 1 is plain training on one domain after another.
        loss: Of each sample.

    Raises:
        ConfigError: If `meta_lr` is outside its range.

    Source: Shi et al. (ICLR 2022, arXiv:2104.09937), Algorithm 1.

    Departs: `risk` is the mean over the domains of the risk before each update; DomainBed logs
    that of the last domain. Integer buffers are not interpolated. The domains come in the order of
    the dataset, as in DomainBed; the paper draws an order.
    """

    printed_name = "Fish"
    min_domains = 2

    def __init__(self, meta_lr: float = 0.5, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        if not 0 < meta_lr <= 1:
            raise ConfigError("trainer.meta_lr", meta_lr, "must be in (0, 1]")
        self.meta_lr = meta_lr

    def objective(self, model: Model, batch: Batch, step: int) -> Iterator[Objective]:
        """Yield the risk of each domain in turn; `step` counts the steps made so far."""
        del step
        moving = [*trainable(model, self), *(b for b in model.buffers() if b.is_floating_point())]
        start = [tensor.detach().clone() for tensor in moving]
        for part in each_domain(batch):
            risk = mean_risk(part, self.loss(model(part.x), part.y))
            yield Objective(risk, {"risk": risk, "objective": risk})
        with torch.no_grad():
            for tensor, before in zip(moving, start, strict=True):
                tensor.copy_(before + self.meta_lr * (tensor - before))
