"""Mixup: mix samples of pairs of domains, and their losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Beta

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass

_SMALLEST = 0.01  # below, PyTorch's draws from the Beta distribution underflow: many are 1/2


class Mixup(OnePass):
    """Minimize the risk of samples that are mixed from two domains.

        objective = (1/D) Σ_pairs mean_i [λ l(x_i, y_a,i) + (1 − λ) l(x_i, y_b,i)]
        x_i = λ x_a,i + (1 − λ) x_b,i,    λ ~ Beta(alpha, alpha) for each pair

    The pairs (a, b) are the neighbors in a ring of the domains in random order: D pairs. Of domains
    with different numbers of samples, the first ones of the larger are mixed.

    Args:
        alpha: Of the Beta distribution, >= 0.01 and finite; small values mix little.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Zhang, Cissé, Dauphin and Lopez-Paz (ICLR 2018, arXiv:1710.09412); between domains,
    Yan et al. (2020, arXiv:2001.00677) and Xu et al. (AAAI 2020, arXiv:1912.01805).

    Departs: from DomainBed, in that all pairs go through the network in one forward pass. The
    recorded risk is that of the mixed samples.
    """

    printed_name = "Mixup"
    min_domains = 2
    refuses_processes = "draws which domains it mixes, and how, in each process"

    def __init__(self, alpha: float = 0.2, l2: float = 0.0, loss: Loss = per_sample_losses) -> None:
        super().__init__(l2, loss)
        if not _SMALLEST <= alpha < math.inf:
            reason = f"must be {_SMALLEST} or more, and finite"
            raise ConfigError("trainer.alpha", alpha, reason, "trainer=erm mixes nothing")
        self.alpha = alpha

    def risk(self, forward: ForwardPass) -> Tensor:
        """The risk of the mixed samples, from a forward pass of their own."""
        batch = forward.batch
        order = torch.randperm(len(batch.sizes)).tolist()
        x, y = batch.by_domain(batch.x), batch.by_domain(batch.y)
        mixed, labels, shares = [], [], []
        for a, b in zip(order, [*order[1:], order[0]], strict=True):
            n = min(len(x[a]), len(x[b]))
            share = Beta(self.alpha, self.alpha).sample().item()
            mixed.append(share * x[a][:n] + (1 - share) * x[b][:n])
            labels.append((y[a][:n], y[b][:n]))
            shares.append(share)
        all_logits = forward.model(torch.cat(mixed)).split([len(each) for each in mixed])
        risks = [
            share * self.loss(logits, ya).mean() + (1 - share) * self.loss(logits, yb).mean()
            for logits, (ya, yb), share in zip(all_logits, labels, shares, strict=True)
        ]
        return torch.stack(risks).mean()
