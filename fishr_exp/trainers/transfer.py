"""Transfer: keep the domains' risks close for every classifier near the trained one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from fishr_exp.core.contracts import Batch, Facts, Model, Objective, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import norm, over_all_ranks
from fishr_exp.trainers._terms import check_weight, domain_risks


class Transfer(Trainer):
    """Minimize the mean risk, and the gap between the risks of the worst classifier nearby.

        gap(h') = max_e R_e(h' ∘ f) − min_e R_e(h' ∘ f)

    where f is the featurizer and h' an adversarial classifier. A step is two updates of the
    network, by one optimizer, each after a forward pass of its own, and then some of h':

        1. minimize the mean risk of the classifier h on f
        2. minimize gamma · gap(h'), which moves f only
        3. h' ← h;  `adversary_steps` times:  h' ← P(h' + adversary_lr · gamma · ∇gap(h'))

    where P projects to the ball about h of radius `radius`, Euclidean over all weights. h' is in
    the checkpoint.

    Args:
        gamma: Weight of the gap, finite and >= 0; at 0 a step is the first update only, ERM's.
        radius: Of the ball, positive and finite.
        adversary_steps: Ascent steps of h' for one step, >= 1.
        adversary_lr: Their length per gradient, positive and finite.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Zhang, Zhao, Yu and Poupart (NeurIPS 2021, arXiv:2106.03632), Algorithm 1, as in
    DomainBed.

    Departs: DomainBed's option `gda`, which each of its random draws sets, trains the adversary
    only, and is not offered. The features do not change in the ascent, and are computed once.
    """

    printed_name = "Transfer"
    min_domains = 2

    def __init__(
        self,
        gamma: float = 1.0,
        radius: float = 2.0,
        adversary_steps: int = 10,
        adversary_lr: float = 1e-3,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        check_weight("trainer.gamma", gamma)
        for key, value in (("radius", radius), ("adversary_lr", adversary_lr)):
            if not 0 < value < math.inf:
                raise ConfigError(f"trainer.{key}", value, "must be positive and finite")
        if adversary_steps < 1:
            raise ConfigError("trainer.adversary_steps", adversary_steps, "must be 1 or more")
        self.gamma: float = gamma
        self.radius = radius
        self.adversary_steps = adversary_steps
        self.adversary_lr = adversary_lr

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Start the adversary as the classifier; it is not an optimizer's."""
        del facts
        self.adversary = copy.deepcopy(model.classifier).requires_grad_(False)
        return model

    def objective(self, model: Model, batch: Batch, step: int) -> Iterator[Objective]:
        """Yield the two objectives in turn; `step` counts the steps made so far."""
        del step
        risk = domain_risks(batch, self.loss(model(batch.x), batch.y)).mean()
        yield Objective(risk, {"risk": risk})
        if self.gamma == 0:
            return
        gap = self._gap(batch, self.adversary(model.featurizer(batch.x)))
        yield Objective(self.gamma * gap, {"gap": gap})
        with torch.no_grad():
            self.adversary.load_state_dict(model.classifier.state_dict())
            features = model.featurizer(batch.x)
        for _ in range(self.adversary_steps):
            self._ascend(model, batch, features)

    def _gap(self, batch: Batch, logits: Tensor) -> Tensor:
        """The largest risk of a domain minus the smallest one, a scalar."""
        risks = domain_risks(batch, self.loss(logits, batch.y))
        return risks[risks.argmax()] - risks[risks.argmin()]

    def _ascend(self, model: Model, batch: Batch, features: Tensor) -> None:
        """Move the adversary to a larger gap, and back into the ball about the classifier."""
        weights = {name: p.detach().requires_grad_() for name, p in self._adversary_weights()}
        gap = self._gap(batch, functional_call(self.adversary, weights, (features,)))
        gradients = over_all_ranks(torch.autograd.grad(gap, [*weights.values()]))
        with torch.no_grad():
            centers = [*model.classifier.parameters()]
            own = [weight for _, weight in self._adversary_weights()]
            for weight, gradient in zip(own, gradients, strict=True):
                weight.add_(self.adversary_lr * self.gamma * gradient)
            apart = [weight - center for weight, center in zip(own, centers, strict=True)]
            distance = norm(apart)
            for weight, center, difference in zip(own, centers, apart, strict=True):
                inside = center + self.radius / distance * difference
                weight.copy_(torch.where(distance > self.radius, inside, weight))

    def _adversary_weights(self) -> list[tuple[str, Tensor]]:
        return list(self.adversary.named_parameters())
