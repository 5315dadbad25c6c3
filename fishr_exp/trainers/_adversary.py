"""An adversary that tells the domains from the features: what DANN and CDANN share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core import distributed
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
from fishr_exp.trainers._terms import check_choice, check_rate, mean_risk

CONVENTIONS = ("domainbed", "paper_2022")
_WIDEST, _DEEPEST = 10**6, 1000  # what is more is a slip, which would fill the memory


class DomainAdversary(Trainer):
    """Train a discriminator of domains on the features, and the network against it.

    A step is one update, of the discriminator or of the network. With q the discriminator, d_i its
    input for sample i and e_i the sample's domain,

        L = mean loss of q + gradient_penalty · mean_i ‖∂ CE(q(d_i), e_i) / ∂d_i‖²
        discriminator: minimize L;    network: minimize (1/D) Σ_e R_e − adversarial_weight · L

    Args:
        adversarial_weight: Weight of L in the network's objective, finite and >= 0.
        discriminator_steps: k, updates of the discriminator for one of the network, >= 1. The
            first period has k − 1: with k = 1 the network begins.
        gradient_penalty: Weight of the squared norm of the discriminator's gradient, >= 0.
        discriminator_lr: Learning rate of the discriminator; None: the optimizer's.
        discriminator_weight_decay: Weight decay of the discriminator, >= 0.
        beta1: Of both players' Adam, in [0, 1); beta2 is 0.9. Other optimizers ignore both.
        width: Units of a hidden layer of the discriminator, >= 1.
        depth: Linear layers of the discriminator, >= 2.
        dropout: Probability of dropping a hidden unit of it, in [0, 1).
        convention: `domainbed` (as above) or `paper_2022`: DomainBed until August 2022, whose
            penalty was on the gradient of Σ_e n_e q(d_i)_e, n_e samples of domain e in the batch
            and q(d_i)_e a probability. With domains of equal sizes that gradient is 0.
        loss: Of each sample, for the network's risk.

    Raises:
        ConfigError: If an argument is outside its range.
    """

    min_domains = 2

    def __init__(
        self,
        adversarial_weight: float = 1.0,
        discriminator_steps: int = 1,
        gradient_penalty: float = 0.0,
        discriminator_lr: float | None = None,
        discriminator_weight_decay: float = 0.0,
        beta1: float = 0.5,
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
        convention: str = "domainbed",
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        for key, value, least in (
            ("adversarial_weight", adversarial_weight, 0),
            ("gradient_penalty", gradient_penalty, 0),
            ("discriminator_weight_decay", discriminator_weight_decay, 0),
            ("discriminator_steps", discriminator_steps, 1),
            ("width", width, 1),
            ("depth", depth, 2),
        ):
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"trainer.{key}", value, f"must be finite and {least} or more")
        check_rate("trainer.discriminator_lr", discriminator_lr)
        for key, value, most in (("width", width, _WIDEST), ("depth", depth, _DEEPEST)):
            if value > most:
                raise ConfigError(f"trainer.{key}", value, "is too large", f"choose at most {most}")
        for key, value in (("beta1", beta1), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise ConfigError(f"trainer.{key}", value, "must be in [0, 1)")
        self.adversarial_weight = adversarial_weight
        self.discriminator_steps = discriminator_steps
        self.gradient_penalty = gradient_penalty
        self.discriminator_lr = discriminator_lr
        self.discriminator_weight_decay = discriminator_weight_decay
        self.betas = (beta1, 0.9)
        self.width, self.depth, self.dropout = width, depth, dropout
        self.convention = convention

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the discriminator; dropout comes before the ReLU, as in DomainBed."""
        sizes = [facts.features, *[self.width] * (self.depth - 1)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.Dropout(self.dropout), nn.ReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(self.width, len(facts.domains)))
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """The network, and the discriminator with all that the method added."""
        own = {
            "params": trainable(self),
            "weight_decay": self.discriminator_weight_decay,
            "betas": self.betas,
        }
        if self.discriminator_lr is not None:
            own["lr"] = self.discriminator_lr
        return {
            "model": [{"params": trainable(model), "betas": self.betas}],
            "discriminator": [own],
        }

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of the player whose turn it is after `step` updates.

        `risk`, `discriminator_loss` and the network's `objective` are logged at every step.
        """
        network = (step + 1) % (self.discriminator_steps + 1) == self.discriminator_steps
        with torch.set_grad_enabled(network):
            features = model.featurizer(batch.x)
            risk = mean_risk(batch, self.loss(model.classifier(features), batch.y))
        loss = self._discriminator_loss(batch, features)
        objective = risk - self.adversarial_weight * loss
        logs = {"risk": risk, "discriminator_loss": loss, "objective": objective}
        if network:
            return Objective(objective, logs)
        return Objective(loss, logs, player="discriminator")

    def discriminator_input(self, features: Tensor, y: Tensor) -> Tensor:
        """Return what the discriminator reads, [N, F], of features [N, F] and labels [N]."""
        del y
        return features

    def mean_loss(self, batch: Batch, losses: Tensor) -> Tensor:
        """Return the mean of the discriminator's losses [N]: over the domains of their means."""
        return mean_risk(batch, losses)

    def _discriminator_loss(self, batch: Batch, features: Tensor) -> Tensor:
        read = self.discriminator_input(features, batch.y)
        if not read.requires_grad:
            read = read.detach().requires_grad_(self.gradient_penalty > 0)
        sizes = torch.tensor(batch.sizes, device=read.device)
        domains = torch.arange(len(sizes), device=read.device).repeat_interleave(sizes)
        logits = self.discriminator(read)
        losses = F.cross_entropy(logits, domains, reduction="none")
        loss = self.mean_loss(batch, losses)
        if self.gradient_penalty == 0:
            return loss
        slope = losses
        if self.convention == "paper_2022":
            slope = logits.softmax(1) @ distributed.total(sizes).to(logits.dtype)
        (gradients,) = torch.autograd.grad(slope.sum(), read, create_graph=True)  # [N, F]
        return loss + self.gradient_penalty * mean_risk(batch, gradients.square().sum(1))
