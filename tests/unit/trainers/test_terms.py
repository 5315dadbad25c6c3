"""What penalties of one forward pass are given."""

from __future__ import annotations

import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, Penalized


class Swapped(Model):
    """A model that predicts otherwise than its parts would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.classifier(2 * self.featurizer(x))


def parts() -> tuple[nn.Module, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.Linear(4, 2)


def test_features_are_what_the_classifier_reads_in_the_same_forward_pass() -> None:
    x = torch.randn(6, 3)
    for model, scale, sign in ((Model(*parts()), 1, 1), (Swapped(*parts()), 2, -1)):
        forward = ForwardPass(model, Batch(x, torch.zeros(6).long(), (3, 3)), per_sample_losses, 0)
        features, logits = forward.features, forward.logits
        assert torch.equal(features, scale * model.featurizer(x))
        assert torch.equal(logits, model(x))
        (slope,) = torch.autograd.grad(logits.sum(), features)
        torch.testing.assert_close(slope, sign * model.classifier.weight.sum(0).expand(6, 4))
        assert not model.classifier._forward_pre_hooks


def test_a_penalty_on_features() -> None:
    class Norm(Penalized):
        def penalty(self, forward: ForwardPass) -> torch.Tensor:
            return forward.features.square().mean()

    model, x = Model(*parts()), torch.randn(6, 3)
    batch = Batch(x, torch.tensor([0, 1, 0, 1, 0, 1]), (2, 4))
    logs = Norm(3.0).objective(model, batch, 0).logs
    torch.testing.assert_close(logs["penalty"], model.featurizer(x).square().mean())
    torch.testing.assert_close(logs["objective"], logs["risk"] + 3 * logs["penalty"])
