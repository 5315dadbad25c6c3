"""SelfReg: pull together samples of one class, without negative pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Batch, Facts, Loss, Model, Objective, Trainer
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_choice, check_weight, in_full, mean_risk

CONVENTIONS = ("intended", "published")
_OF_FEATURES = 0.3  # their weight beside the logits
_LARGEST_EQUAL = 2048  # features of a ResNet-50; a projector of fewer is twice as wide inside
_BETA = 0.5


class SelfReg(Trainer):
    """The mean risk plus the distances of logits and features from those of random partners.

    With p and q two random permutations of the batch within each class, z the logits, f the
    features, u their projections, λ ~ Beta(0.5, 0.5) one number per step, and |·|² the mean square
    over all entries,

        A = |z − z_p|² + 0.3 |f − u_p|²
        B = |z − (λ z_p + (1 − λ) z_q)|² + 0.3 |f − (λ u_p + (1 − λ) u_q)|²
        objective = R + gamma · min(R, 1) · (λ A + (1 − λ) B),    R = (1/D) Σ_e R_e

    The factor min(R, 1) is a constant. A sample may be its own partner.

    Args:
        gamma: Weight of the distances, finite and >= 0; 0 is ERM, without a projector.
        convention: `intended`, which trains the projector, or `published`: DomainBed's code, which
            does not.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Kim et al. (ICCV 2021, arXiv:2104.09841), in DomainBed's form; the paper also has a
    curriculum over domains and averages the weights.
    """

    printed_name = "SelfReg"
    refuses_processes = "it pairs samples of the whole batch, of which each process has a part"

    def __init__(
        self, gamma: float = 1.0, convention: str = "intended", loss: Loss = per_sample_losses
    ) -> None:
        super().__init__(loss)
        check_weight("trainer.gamma", gamma, "0 is ERM")
        check_choice("trainer.convention", convention, CONVENTIONS)
        self.gamma: float = gamma
        self.convention = convention

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the projector: three linear layers, each with BatchNorm, ReLU between them."""
        if self.gamma == 0:
            return model
        features = facts.features
        inner = features if features == _LARGEST_EQUAL else 2 * features
        self.projector = nn.Sequential(
            *_normalized(features, inner),
            nn.ReLU(),
            *_normalized(inner, inner),
            nn.ReLU(),
            *_normalized(inner, features),
        )
        self.projector.requires_grad_(self.convention == "intended")
        return model

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch, with new draws: λ, then p and q."""
        del step
        features = model.featurizer(batch.x)
        logits = model.classifier(features)
        risk = mean_risk(batch, self.loss(logits, batch.y))
        if self.gamma == 0:
            return Objective(risk, {"risk": risk, "objective": risk})
        share = torch.distributions.Beta(_BETA, _BETA).sample().item()
        first, second = partners(batch.y), partners(batch.y)
        projected = self.projector(features)
        distances = []
        for values, of_others, weight in (
            (logits, logits, 1.0),
            (features, projected, _OF_FEATURES),
        ):
            own, others = in_full(values), in_full(of_others)
            mixed = share * others[first] + (1 - share) * others[second]
            to_one = (own - others[first]).square().mean()
            to_mixed = (own - mixed).square().mean()
            distances.append(weight * (share * to_one + (1 - share) * to_mixed))
        penalty = risk.detach().clamp(max=1) * torch.stack(distances).sum()
        total = risk + self.gamma * penalty
        return Objective(total, {"risk": risk, "penalty": penalty, "objective": total})


def partners(y: Tensor) -> Tensor:
    """Draw for each of the samples with labels y [N] another's index, or its own: [N].

    A permutation that is uniform among those that keep the labels.
    """
    order = torch.rand(len(y), device=y.device).argsort()
    shuffled = order[y[order].argsort(stable=True)]
    drawn = torch.empty_like(shuffled)
    drawn[y.argsort(stable=True)] = shuffled
    return drawn


def _normalized(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """A linear layer and BatchNorm, which would take away its bias."""
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)
