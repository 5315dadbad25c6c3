"""A method with a network and an optimizer of its own: a discriminator of domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core.contracts import (
    Batch,
    Facts,
    Loss,
    Model,
    Objective,
    Parameters,
    Trainer,
    trainable,
)
from fishr_exp.trainers import mean_risk


class Adversary(Trainer):
    """Two updates a step: the discriminator's, and the model's against it.

    Every third step is the discriminator's alone.

    Args:
        weight: Of the discriminator's loss in the model's objective.
        lr_factor: Of the discriminator's learning rate.
        loss: Of each sample.
    """

    min_domains = 2

    def __init__(self, loss: Loss, weight: float = 0.1, lr_factor: float = 1.0) -> None:
        super().__init__(loss)
        self.weight, self.lr_factor = weight, lr_factor

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the discriminator of features."""
        self.discriminator = nn.Linear(facts.features, len(facts.domains))
        self.register_buffer("start", self.discriminator.weight.detach().clone())
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """The model, and the discriminator with its own learning rate."""
        own = {"params": trainable(self.discriminator), "lr_factor": self.lr_factor}
        return {"model": trainable(model), "discriminator": [own]}

    def objective(self, model: Model, batch: Batch, step: int) -> Iterator[Objective]:
        """Yield the discriminator's loss, and then the model's, which sees what it learned."""
        guess = self._guess(batch, model.featurizer(batch.x).detach())
        yield Objective(guess, {"discriminator": guess}, player="discriminator")
        features = model.featurizer(batch.x)
        risk = mean_risk(batch, self.loss(model.classifier(features), batch.y))
        total = risk - self.weight * self._guess(batch, features)
        moved = (self.discriminator.weight - self.start).abs().max()
        logs = {"risk": risk, "objective": total, "moved": moved}
        if step % 3 != 2:
            yield Objective(total, logs)

    def _guess(self, batch: Batch, features: Tensor) -> Tensor:
        sizes = torch.tensor(batch.sizes, device=features.device)
        domains = torch.arange(len(sizes), device=features.device).repeat_interleave(sizes)
        losses = F.cross_entropy(self.discriminator(features), domains, reduction="none")
        return mean_risk(batch, losses)
