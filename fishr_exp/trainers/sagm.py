"""SAGM: lower the risk, the perturbed risk, and the gap between them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._perturbed import Perturbed
from fishr_exp.trainers._terms import check_weight


class Sagm(Perturbed):
    """Follow the mean of the gradients at the weights and at weights perturbed a little less.

        direction = ½ [ g + ∇R(θ + (rho / ‖g‖ − alpha) · g) ],    g = ∇R(θ)

    where R is the mean risk and the norm is over all trainable parameters. The part −alpha · g of
    the perturbation aligns the two gradients. `objective` is the mean of the two risks.

    Args:
        rho: Radius of the perturbation, finite and >= 0.
        alpha: Weight of the alignment, finite and >= 0.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Wang, Zhang, Lei and Zhang (CVPR 2023, arXiv:2303.10353), as in their code.

    Departs: no 1e-12 is added to the norm. Their code has the radius 0.05 whatever the
    hyperparameter is; here it is `rho`.
    """

    printed_name = "SAGM"

    def __init__(
        self, rho: float = 0.05, alpha: float = 0.001, loss: Loss = per_sample_losses
    ) -> None:
        super().__init__(rho, loss)
        check_weight("trainer.alpha", alpha)
        self.alpha = alpha

    @property
    def stays(self) -> bool:
        """Whether the weights are not perturbed at all."""
        return self.rho == self.alpha == 0

    def scale(self, gradients: Sequence[Tensor]) -> Tensor:
        """SAM's scale, less alpha."""
        return super().scale(gradients) - self.alpha

    def direction(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """The mean of both gradients."""
        return [(a + b) / 2 for a, b in zip(first, second, strict=True)]

    def recorded(self, risk: Tensor, perturbed: Tensor) -> Tensor:
        """The mean of both risks."""
        return (risk + perturbed) / 2
