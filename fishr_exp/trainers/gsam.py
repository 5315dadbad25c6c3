"""GSAM: lower the perturbed risk, and its distance from the risk without raising it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._perturbed import Perturbed
from fishr_exp.trainers._terms import check_weight


class Gsam(Perturbed):
    """Follow SAM's gradient, and climb along the part of the gradient that is orthogonal to it.

        direction = g' − alpha · (g − (⟨g, g'⟩ / ‖g'‖²) · g'),
        g = ∇R(θ),    g' = ∇R(θ + rho · g / ‖g‖)

    where R is the mean risk; norms and inner product are over all trainable parameters.
    `objective` is the risk at the perturbed weights. The paper's surrogate gap is `perturbed_risk`
    minus `risk`.

    Args:
        rho: Radius of the perturbation, finite and >= 0; 0 is ERM.
        alpha: Weight of the orthogonal part, finite and >= 0; 0 is SAM.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Zhuang et al. (ICLR 2022, arXiv:2203.08065), Algorithm 1, and the first author's code
    in PyTorch.

    Departs: `rho` is constant, as theirs is under a constant learning rate; no 1e-12 is added to
    norms. Over several processes the gradients are averaged before they are combined; theirs
    combines those of each process.
    """

    printed_name = "GSAM"

    def __init__(
        self, rho: float = 0.05, alpha: float = 0.01, loss: Loss = per_sample_losses
    ) -> None:
        super().__init__(rho, loss)
        check_weight("trainer.alpha", alpha)
        self.alpha = alpha

    def direction(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """The second gradients, less alpha times what the first have beside them."""
        pairs = list(zip(first, second, strict=True))
        product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
        square = torch.stack([b.square().sum() for b in second]).sum()
        along = torch.where(square > 0, product / square, 0)
        return [b - self.alpha * (a - along * b) for a, b in pairs]
