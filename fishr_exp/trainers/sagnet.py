"""SagNet: classify by content, and not by style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

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
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_weight, in_full, mean_risk

_EPSILON = 1e-5


class SagNet(Trainer):
    """Train a content head on features of mixed style, and the featurizer against a style head.

    The style of a sample is the mean m_i and the unbiased variance v_i of its F features, and its
    content is û_i = (f_i − m_i) / √(v_i + 1e-5). With a random permutation π of the batch and
    α_i ~ U(0, 1), both new in each of the three updates of a step,

        s_i = û_i √(v + 1e-5) + m,    (m, v) = α_i (m_i, v_i) + (1 − α_i) (m_π(i), v_π(i))
        t_i = û_π(i) √(v_i + 1e-5) + m_i,    û_π(i) without gradient
        1. featurizer and classifier:  mean loss of classifier(s_i)
        2. style head:                 mean loss of style(t_i)
        3. featurizer:                 adversarial_weight · mean_i mean_c −log softmax(style(t_i))_c

    Predictions are classifier(f_i). Means over samples are over the domains and their samples.

    Args:
        adversarial_weight: Weight of the third objective, finite and >= 0.
        loss: Of each sample, for the first two objectives.

    Raises:
        ConfigError: If the weight is outside its range, or the model has fewer than two features.

    Source: Nam et al. (CVPR 2021, arXiv:1910.11645), in DomainBed's form: their style is that of
    the channels of a feature map, and both heads have the last stage of a ResNet.
    """

    printed_name = "SagNet"
    refuses_processes = "it mixes samples of the whole batch, of which each process has a part"

    def __init__(self, adversarial_weight: float = 0.1, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        check_weight("trainer.adversarial_weight", adversarial_weight)
        self.adversarial_weight = adversarial_weight

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the style head."""
        if facts.features < 2:
            reason = "needs a model with 2 features or more, whose variance it takes"
            raise ConfigError("trainer", "sagnet", reason, "choose a wider model")
        self.style = nn.Linear(facts.features, facts.classes)
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """Featurizer, classifier and style head; the featurizer's optimizer serves two updates."""
        return {
            "featurizer": trainable(model.featurizer),
            "classifier": trainable(model.classifier),
            "style": trainable(self.style),
        }

    def objective(self, model: Model, batch: Batch, step: int) -> Iterator[Objective]:
        """Yield the three objectives; `risk` is the first one, the log `objective` their mean."""
        del step
        mixed = style_mixed(model.featurizer(batch.x))
        risk = mean_risk(batch, self.loss(model.classifier(mixed), batch.y))
        yield Objective(risk, {"risk": risk}, player=("featurizer", "classifier"))

        with torch.no_grad():
            mixed = content_mixed(model.featurizer(batch.x))
        style = mean_risk(batch, self.loss(self.style(mixed), batch.y))
        yield Objective(style, {"style_risk": style}, player="style")

        mixed = content_mixed(model.featurizer(batch.x))
        surprise = -self.style(mixed).log_softmax(1).mean(1)
        adversarial = mean_risk(batch, surprise)
        yield Objective(
            self.adversarial_weight * adversarial,
            {"adversarial_loss": adversarial},
            player="featurizer",
        )


def style_mixed(features: Tensor) -> Tensor:
    """Return features [N, F] with their content, and a style between theirs and another's."""
    share, other = _draws(features)
    content, mean, variance = _content_and_style(features)
    mean = share * mean + (1 - share) * mean[other]
    variance = share * variance + (1 - share) * variance[other]
    return content * (variance + _EPSILON).sqrt() + mean


def content_mixed(features: Tensor) -> Tensor:
    """Return features [N, F] with their style and another's content, which gets no gradient."""
    _, other = _draws(features)  # as DomainBed, which draws α here too and does not use it
    content, mean, variance = _content_and_style(features)
    return content[other].detach() * (variance + _EPSILON).sqrt() + mean


def _draws(features: Tensor) -> tuple[Tensor, Tensor]:
    """Draw α, [N, 1], and then the permutation π, [N]."""
    share = torch.rand(len(features), 1, device=features.device)
    return share, torch.randperm(len(features), device=features.device)


def _content_and_style(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return û [N, F], m [N, 1] and v [N, 1]."""
    features = in_full(features)
    mean, variance = features.mean(1, keepdim=True), features.var(1, keepdim=True)
    return (features - mean) / (variance + _EPSILON).sqrt(), mean, variance
