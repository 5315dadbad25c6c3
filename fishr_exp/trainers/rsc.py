"""RSC: mute the features that the prediction depends on most."""

from __future__ import annotations

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass
from fishr_exp.trainers._terms import mean_risk, of_all_ranks


class Rsc(OnePass):
    """Minimize the risk with the most predictive features muted, for the samples that feel it most.

    With p the probability of the true class:

    1. A feature j of sample i is muted if the derivative of the true class's logit by it is not
       below the quantile 1 − drop_features of the sample's derivatives.
    2. A sample is hit if p falls, when its features are muted, by no less than the quantile
       1 − drop_samples of the batch.
    3. objective = R, with the features of the samples that are hit muted.

    The classifier is linear, so the derivatives are its weights of the true class.

    Args:
        drop_features: Part of the features to mute, in [0, 1).
        drop_samples: Part of the samples that are hit, in [0, 1).
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Huang, Wang, Xing and Huang (ECCV 2020, arXiv:2007.02454).

    Departs: for two classes with a single logit z, the logits of the classes are −z/2 and z/2.
    """

    printed_name = "RSC"

    def __init__(
        self,
        drop_features: float = 1 / 3,
        drop_samples: float = 1 / 3,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        for name, value in (("drop_features", drop_features), ("drop_samples", drop_samples)):
            if not 0 <= value < 1:
                raise ConfigError(f"trainer.{name}", value, "must be in [0, 1)")
        self.drop_features, self.drop_samples = drop_features, drop_samples

    def risk(self, forward: ForwardPass) -> Tensor:
        """The mean risk with muted features."""
        features, classifier = forward.features, forward.model.classifier
        with torch.no_grad():
            kept = self._kept(forward)
        losses = self.loss(classifier(features * kept), forward.batch.y)
        return mean_risk(forward.batch, losses)

    def _kept(self, forward: ForwardPass) -> Tensor:
        """1 for the features that are kept, 0 for the others: [N, F]."""
        y, classifier, features = forward.batch.y, forward.model.classifier, forward.features
        of_class = classifier.weight  # [C, F]
        if len(of_class) == 1:
            of_class = torch.cat([-of_class, of_class]) / 2
        # One mask a class, since all its samples have the same derivatives.
        level = torch.quantile(of_class, 1 - self.drop_features, dim=1, keepdim=True)
        keep = (of_class < level)[y]  # [N, F]
        muted = classifier(features * keep)
        fall = _of_true(forward.logits, y) - _of_true(muted, y)  # [N]
        everywhere = torch.cat(of_all_ranks(forward.batch, fall))
        hit = fall >= torch.quantile(everywhere, 1 - self.drop_samples)
        return (keep | ~hit[:, None]).to(features.dtype)


def _of_true(logits: Tensor, y: Tensor) -> Tensor:
    """Probability of the true class, [N]."""
    if logits.shape[1] == 1:
        logits = torch.cat([-logits, logits], 1) / 2
    return logits.softmax(1).gather(1, y[:, None])[:, 0]
