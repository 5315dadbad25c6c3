"""TRM: features on which the best classifier of one domain serves the others, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Facts, Model
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, Part, Penalty
from fishr_exp.trainers._terms import check_choice, check_weight, of_all_ranks

CONVENTIONS = ("intended", "published")
_HEAD_STEPS, _HEAD_LR = 30, 0.1  # of gradient descent of each head on its domain, at every step
_TERMS, _LARGEST = 10, 10.0  # of the series of the inverse Hessian, and where it is cut off


class Trm(Penalty):
    """The mean risk plus the risk of each domain's own head on the other domains.

    Each domain Q has a linear head w_Q. At every step it makes 30 steps of gradient descent with
    rate 0.1 on its domain's features, which stay as they are. With R_i(w) the risk of domain i
    under a head w, and weights a_Qi ≥ 0 with Σ_i a_Qi = 1 and a_QQ = 0,

        P_Q = Σ_i a_Qi R_i(w_Q)
        T_Q = P_Q − cosine_weight · ⟨u_Q, ∇_w R_Q(w_Q)⟩,    u_Q ≈ H_Q⁻¹ ∇_w P_Q, a constant
        objective = R + gamma · (1/D) Σ_Q T_Q,    a_Qi ← a_Qi exp(eta · a_Qi R_i(w_Q))

    where H_Q is the Hessian of R_Q(w_Q), ∇_w leaves the biases out, and

        u_Q = v_0 + v_1 + … + v_10,    v_0 = ∇_w P_Q,    v_k = v_{k−1} − H_Q v_{k−1}

    is cut off once an entry exceeds 10. Heads and weights are in the checkpoint.

    Args:
        gamma: Weight of the transfer risk, finite and >= 0; 0 is ERM.
        cosine_weight: Of the term with the inverse Hessian, finite and >= 0.
        eta: Step size of the weights a, finite and >= 0.
        anneal_steps: Steps before gamma acts; until then ERM.
        convention: `intended` (as above) or `published`: DomainBed's code, where operations in
            place make the series 2 v_1 + v_2 + … + v_10, and the gradient of P_Q that of the next
            step's weights before they are normalized.
        ramp: How the weight grows from there to gamma, see `Penalty`.
        ramp_steps: Steps that this takes.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Xu and Jaakkola (arXiv:2110.09940), in DomainBed's form.
    """

    printed_name = "TRM"
    min_domains = 2

    def __init__(
        self,
        gamma: float = 1.0,
        cosine_weight: float = 1e-4,
        eta: float = 0.01,
        anneal_steps: int = 200,
        convention: str = "intended",
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(gamma, anneal_steps, ramp, ramp_steps, l2, loss)
        for key, value in (("cosine_weight", cosine_weight), ("eta", eta)):
            check_weight(f"trainer.{key}", value)
        check_choice("trainer.convention", convention, CONVENTIONS)
        own = dict.fromkeys(("cosine_weight", "eta", "convention"), anneal_steps)
        self.acts_from = {**self.acts_from, **own}
        self.cosine_weight = cosine_weight
        self.eta = eta
        self.convention = convention
        self.weights: Tensor  # a: [D, D]

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Make the heads, which the method trains itself, and the weights."""
        count = len(facts.domains)
        outputs = model.classifier.out_features
        heads = [nn.Linear(facts.features, outputs) for _ in range(count)]
        self.heads = nn.ModuleList(heads).requires_grad_(False)
        self.register_buffer("weights", torch.ones(count, count) - torch.eye(count))
        return model

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The transfer risk; heads and weights stay as they are where it does not act."""
        return super().parts(forward) if self.weight(forward.step) > 0 else ()

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Return the mean of the T_Q; it moves the heads and the weights."""
        batch, features = forward.batch, forward.features
        by_domain = of_all_ranks(batch, features)  # D x [n, F]
        labels = of_all_ranks(batch, batch.y)
        weights = self.weights / self.weights.sum(1, keepdim=True)
        transfers, grown = [], []
        for number, (own, y) in enumerate(zip(by_domain, labels, strict=True)):
            head = self._fitted(number, own.detach(), y)
            of_others = [
                self.loss(F.linear(f, *head), of).mean() if i != number else f.new_zeros(())
                for i, (f, of) in enumerate(zip(by_domain, labels, strict=True))
            ]
            risks = torch.stack(of_others)  # [D], with 0 for the own one, whose weight is 0, too
            transfer = weights[number] @ risks
            (slope,) = torch.autograd.grad(transfer, head[0], retain_graph=True)
            grown.append(weights[number] * (self.eta * weights[number] * risks.detach()).exp())
            if self.convention == "published":
                transfer = grown[-1] @ risks
            direction = self._over_hessian(slope, own.detach(), y, head)
            own_risk = self.loss(F.linear(own, *head), y).mean()
            (own_slope,) = torch.autograd.grad(own_risk, head[0], create_graph=True)
            transfers.append(transfer - self.cosine_weight * (direction * own_slope).sum())
        self.weights = torch.stack(grown)
        return torch.stack(transfers).mean()

    def _fitted(self, number: int, features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Train a domain's head on features [n, F]; return its weight, a new leaf, and bias."""
        weight, bias = self.heads[number].parameters()
        for _ in range(_HEAD_STEPS):
            w, b = (p.detach().requires_grad_() for p in (weight, bias))
            risk = self.loss(F.linear(features, w, b), y).mean()
            for p, slope in zip((weight, bias), torch.autograd.grad(risk, (w, b)), strict=True):
                p.sub_(_HEAD_LR * slope)
        return weight.detach().clone().requires_grad_(), bias.detach().clone()

    def _over_hessian(
        self, vector: Tensor, features: Tensor, y: Tensor, head: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return an approximation of the inverse Hessian of the risk on features times a vector.

        Both are by the head's weight, [C, F].
        """
        risk = self.loss(F.linear(features, *head), y).mean()
        (slope,) = torch.autograd.grad(risk, head[0], create_graph=True)
        term, total = vector, vector
        for number in range(_TERMS):
            (product,) = torch.autograd.grad(slope, head[0], term, retain_graph=True)
            term = term - product
            first = number == 0 and self.convention == "published"
            total = 2 * term if first else total + term
            if total.abs().max() > _LARGEST:
                break
        return total
