"""Linear probing: the classifier alone is trained, on fixed features."""

from __future__ import annotations

import torch

from fishr_exp.core.contracts import Batch, Facts, Loss, Model, Objective, Trainer
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import mean_risk


class LinearProbe(Trainer):
    """Train the classifier, and leave the featurizer as it is.

        min over the classifier's weights of (1/D) Σ_e R_e

    The featurizer is in evaluation mode throughout: BatchNorm keeps its statistics, and nothing is
    dropped. It makes the shared start of runs whose weights are to be averaged.

    Args:
        loss: Of each sample.

    Source: Kumar et al. (arXiv:2202.10054), as the start of fine-tuning; as the shared start of
        runs to be averaged Ramé et al. (arXiv:2205.09739).
    """

    printed_name = "Linear probe"

    def __init__(self, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Fix the featurizer."""
        del facts
        return FixedFeaturizer(model)

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the mean risk of the domains."""
        del step
        with torch.no_grad():
            features = model.featurizer(batch.x)
        risk = mean_risk(batch, self.loss(model.classifier(features), batch.y))
        return Objective(total=risk, logs={"risk": risk})


class FixedFeaturizer(Model):
    """A model whose featurizer has no trainable parameters, and is never in training mode."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.featurizer.requires_grad_(False), model.classifier)

    def train(self, mode: bool = True) -> FixedFeaturizer:
        """Set the mode of the classifier."""
        super().train(mode)
        self.featurizer.eval()
        return self
