"""ERM++: train the classifier first, and then everything."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fishr_exp.core.contracts import (
    Batch,
    Loss,
    Model,
    Objective,
    Overrides,
    Parameters,
    Trainer,
    trainable,
)
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_rate, mean_risk


class ErmPlusPlus(Trainer):
    """Minimize the mean risk, by the classifier's weights alone in the first steps.

        objective = (1/D) Σ_e R_e

    The classifier has an optimizer of its own in these steps, and the whole model a new one after
    them. The featurizer is in training mode all along: BatchNorm moves unless it is frozen. The
    other parts of ERM++ are not of a trainer: an average of the weights is `averaging=sma`.

    Args:
        classifier_steps: First steps, which train the classifier alone, >= 0; 0 is ERM.
        classifier_lr: Learning rate in these steps; None: the optimizer's.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Teterwak, Saito, Tsiligkaridis, Saenko and Plummer (arXiv:2304.01973), in DomainBed's
    form.
    """

    printed_name = "ERM++"

    def __init__(
        self,
        classifier_steps: int = 500,
        classifier_lr: float | None = None,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        if classifier_steps < 0:
            raise ConfigError("trainer.classifier_steps", classifier_steps, "must be 0 or more")
        check_rate("trainer.classifier_lr", classifier_lr)
        self.classifier_steps = classifier_steps
        self.classifier_lr = classifier_lr

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """The model, and for the first steps its classifier."""
        whole = {"model": trainable(model)}
        if self.classifier_steps == 0:
            return whole
        own: Overrides = {} if self.classifier_lr is None else {"lr": self.classifier_lr}
        return {**whole, "classifier": [{"params": trainable(model.classifier), **own}]}

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch for the player whose turn it is."""
        whole = step >= self.classifier_steps
        with torch.set_grad_enabled(whole):
            features = model.featurizer(batch.x)
        risk = mean_risk(batch, self.loss(model.classifier(features), batch.y))
        logs = {"risk": risk, "objective": risk}
        return Objective(risk, logs, player="model" if whole else "classifier")
