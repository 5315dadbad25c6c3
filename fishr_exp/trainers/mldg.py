"""MLDG: a step that lowers the risk of one domain should lower that of another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Facts, Model, Objective, Trainer, trainable
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import (
    each_domain,
    moved,
    risk_and_gradients,
)
from fishr_exp.trainers._terms import check_choice, check_weight

CONVENTIONS = ("domainbed_main", "paper_2022")
_EPSILON = 1e-8  # of Adam


class Mldg(Trainer):
    """Add to the gradient of a domain that of another one, taken after a step on the first.

        direction = (1/D) Σ_(i,j) [ ∇R_i(θ) + beta · ∇R_j(θ_i) ]

    where θ_i is what the first step of a new Adam on R_i makes of the weights θ: with
    g = ∇R_i(θ) + inner_weight_decay · θ, θ_i = θ − inner_lr · g / (|g| + 1e-8), element by element.
    Of first order: ∇R_j(θ_i) is not differentiated through the inner step.

    The pairs (i, j) are drawn at every step by a random order of the domains. `risk` is the mean of
    R_i(θ) over the pairs, and `meta_test_risk` that of R_j(θ_i).

    Args:
        beta: Weight of the second gradient, finite and >= 0.
        convention: Which pairs: `domainbed_main` (the last `n_meta_test` domains are for the
            meta-test; each of the others is paired with one of them, in turn: D − n_meta_test
            pairs, divided by D all the same) or `paper_2022` (each domain is paired with the next
            one, the last one with the first: D pairs; the code of DomainBed's sweep of 2020 and of
            the Fishr paper).
        n_meta_test: Number of domains for the meta-test, >= 1 and less than D, with
            `domainbed_main`.
        inner_lr: Learning rate of the inner step, positive and finite; in DomainBed that of the
            optimizer.
        inner_weight_decay: Of the inner step, finite and >= 0; in DomainBed that of the optimizer.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range, or `n_meta_test` leaves no domain.

    Source: Li, Yang, Song and Hospedales (AAAI 2018, arXiv:1710.03463), in first order, as in
    DomainBed.

    Departs: all samples of both domains of a pair are used, where DomainBed cuts both minibatches
    to the shorter one. BatchNorm in training mode updates its statistics in the passes at θ; in
    DomainBed it never does. Where DomainBed trains nothing, with 2 domains and `n_meta_test` 2,
    this is refused.
    """

    printed_name = "MLDG"
    min_domains = 2

    def __init__(
        self,
        beta: float = 1.0,
        convention: str = "domainbed_main",
        n_meta_test: int = 1,
        inner_lr: float = 1e-3,
        inner_weight_decay: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        check_weight("trainer.beta", beta)
        check_choice("trainer.convention", convention, CONVENTIONS)
        if n_meta_test < 1:
            raise ConfigError("trainer.n_meta_test", n_meta_test, "must be 1 or more")
        if not 0 < inner_lr < math.inf:
            raise ConfigError("trainer.inner_lr", inner_lr, "must be positive and finite")
        check_weight("trainer.inner_weight_decay", inner_weight_decay)
        self.beta = beta
        self.convention = convention
        self.n_meta_test = n_meta_test
        self.inner_lr = inner_lr
        self.inner_weight_decay = inner_weight_decay

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Refuse a split of the domains by which nothing would be trained."""
        domains = len(facts.domains)
        if self.convention == "domainbed_main" and self.n_meta_test >= domains:
            raise ConfigError(
                "trainer.n_meta_test",
                self.n_meta_test,
                f"leaves none of the {domains} training domains for the meta-training, so that "
                "nothing is trained",
                f"choose at most {domains - 1}, or pass trainer.convention=paper_2022",
            )
        return model

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the direction for one batch; `step` counts the steps made so far."""
        del step
        parameters, parts = trainable(model, self), each_domain(batch)
        direction = [torch.zeros_like(parameter) for parameter in parameters]
        risks, later_risks = [], []
        for i, j in self._pairs(len(parts)):
            risk, first = risk_and_gradients(model, parts[i], self.loss, parameters)
            steps = [
                self._inner_step(w.detach(), g) for w, g in zip(parameters, first, strict=True)
            ]
            with moved(model, parameters, steps):
                later, second = risk_and_gradients(model, parts[j], self.loss, parameters)
            for each, g_i, g_j in zip(direction, first, second, strict=True):
                each.add_(g_i, alpha=1 / len(parts)).add_(g_j, alpha=self.beta / len(parts))
            risks.append(risk)
            later_risks.append(later)
        total = torch.stack(risks).sum() + self.beta * torch.stack(later_risks).sum()
        logs = {
            "risk": torch.stack(risks).mean(),
            "meta_test_risk": torch.stack(later_risks).mean(),
            "objective": total / len(parts),
        }
        return Objective(logs["objective"], logs, gradients=direction)

    def _pairs(self, domains: int) -> Iterator[tuple[int, int]]:
        """Draw the pairs of one step; the same in all processes."""
        order = distributed.from_first(lambda: torch.randperm(domains).tolist())
        if self.convention == "paper_2022":
            return zip(order, order[1:] + order[:1], strict=True)
        train, test = order[: -self.n_meta_test], order[-self.n_meta_test :]
        return zip(train, itertools.cycle(test), strict=False)

    def _inner_step(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return what the first step of a new Adam adds to the weights."""
        g = gradient.add(weights, alpha=self.inner_weight_decay)
        return g.div_(g.abs().add_(_EPSILON)).mul_(-self.inner_lr)
