"""CAD: let a sample's neighbors in feature space be of other domains."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, Penalty
from fishr_exp.trainers._terms import of_all_ranks

_BASE = 0.07  # temperature at which a row of the penalty has weight 1


class Cad(Penalty):
    """Penalize that a sample can be told to be of its domain by its neighbors.

        objective = R + gamma · mean_i −(τ / 0.07) · log Σ_j p_ij over the j of other domains
        p_i = softmax over all j ≠ i of f_i · f_j / τ

    The mean is over the samples with another sample of their label in the batch; without one the
    penalty is 0.

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        temperature: τ, positive and finite.
        anneal_steps: Steps before gamma acts.
        ramp: How the weight grows from there to gamma, see `Penalty`.
        ramp_steps: Steps that this takes.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Ruan, Dubois and Maddison (ICLR 2022, arXiv:2201.00057); this form, without a projector
    and without normalized features, is DomainBed's default.
    """

    printed_name = "CAD"
    min_domains = 2
    same_label = False  # whether only samples with the same label are compared

    def __init__(
        self,
        gamma: float,
        temperature: float = 0.1,
        anneal_steps: int = 0,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(gamma, anneal_steps, ramp, ramp_steps, l2, loss)
        if not 0 < temperature < math.inf:
            raise ConfigError("trainer.temperature", temperature, "must be positive and finite")
        self.temperature = temperature

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean over the samples that count."""
        by_domain = of_all_ranks(forward.batch, forward.features)
        f, y = torch.cat(by_domain), torch.cat(of_all_ranks(forward.batch, forward.batch.y))
        sizes = torch.tensor([len(own) for own in by_domain], device=y.device)
        domain = torch.arange(len(sizes), device=y.device).repeat_interleave(sizes)
        other_domain = domain[:, None] != domain
        itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
        of_label = (y[:, None] == y) & ~itself
        among = of_label if self.same_label else ~itself
        found = among & other_domain
        counts = (found if self.same_label else of_label).any(1)
        similar = (f @ f.T / self.temperature)[counts]
        log_p = similar.masked_fill(~among[counts], -math.inf).log_softmax(1)
        rows = log_p.masked_fill(~found[counts], -math.inf).logsumexp(1)
        rows = rows[rows.isfinite()]
        if not len(rows):
            return 0 * f.sum()
        return -(self.temperature / _BASE) * rows.mean()
