"""SAND-mask: weigh a coordinate of the gradient by how far the domains agree on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import Masked


class SandMask(Masked):
    """Weigh the coordinates of the mean gradient by the domains' agreement in sign and in size.

        m = max(0, tanh( k/σ² · (|(1/D) Σ_e sign(g_e)| − tau) )),
        direction = m · ḡ / (1e-10 + mean(m))

    where g_e is the gradient of domain e's risk, ḡ = (1/D) Σ_e g_e, and σ² the unbiased variance
    of g_e over the domains, element by element. The mean of m is taken over the entries of each
    parameter tensor, so that its direction keeps its size.

    Args:
        tau: Agreement in sign from which on a coordinate has a weight, in [0, 1). At 1, the
            default of DomainBed, m is 0 everywhere and nothing is trained.
        k: Steepness, positive and finite: the smaller it is, the more the variance counts.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Shahtalebi, Gagnon-Audet, Laleh, Faramarzi, Ahuja and Rish (2021, arXiv:2106.02266).

    Departs: `tau` is 0.5 by default, the middle of DomainBed's range. Where σ² is 0 and the
    agreement is `tau`, m is 0, and 1e-17 in DomainBed.
    """

    printed_name = "SAND-mask"

    def __init__(self, tau: float = 0.5, k: float = 10.0, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        if tau == 1:
            reason = "weighs every coordinate with 0, so that nothing is trained"
            raise ConfigError("trainer.tau", tau, reason, "choose a value in [0, 1), such as 0.5")
        if not 0 <= tau < 1:
            raise ConfigError("trainer.tau", tau, "must be in [0, 1)")
        if not 0 < k < math.inf:
            raise ConfigError("trainer.k", k, "must be positive and finite")
        self.tau = tau
        self.k = k

    def mask(self, gradients: Tensor) -> Tensor:
        """Return m, [*shape], from the gradients of one parameter, [D, *shape]."""
        agreement = gradients.sign().mean(0).abs()
        # `Tensor.var` over the first dimension takes ten times as long on a CPU.
        variance = (gradients - gradients.mean(0)).square().sum(0) / (len(gradients) - 1)
        steepness = self.k / variance
        return torch.tanh(steepness * (agreement - self.tau)).clamp(min=0).nan_to_num(0)
