"""SAM: lower the largest risk in the neighborhood of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._perturbed import Perturbed


class Sam(Perturbed):
    """Follow the gradient at the weights where the risk is largest nearby, to first order.

        direction = ∇R(θ + rho · g / ‖g‖),    g = ∇R(θ)

    where R is the mean risk and the norm is over all trainable parameters. `objective` is the risk
    at the perturbed weights.

    Args:
        rho: Radius of the neighborhood, finite and >= 0; 0 is ERM.
        loss: Of each sample.

    Raises:
        ConfigError: If `rho` is outside its range.

    Source: Foret, Kleiner, Mobahi and Neyshabur (ICLR 2021, arXiv:2010.01412); as a method for
    domain generalization, SWAD's code (Cha et al., NeurIPS 2021, arXiv:2102.08604).

    Departs: the weights come back to the same bits, and the second pass leaves BatchNorm's
    statistics as they were; SWAD's code subtracts the step again, and updates them twice. A
    gradient of zero perturbs nothing, where SWAD's code divides by zero.
    """

    printed_name = "SAM"

    def __init__(self, rho: float = 0.05, loss: Loss = per_sample_losses) -> None:
        super().__init__(rho, loss)

    def direction(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """The gradient at the perturbed weights."""
        del first
        return list(second)
