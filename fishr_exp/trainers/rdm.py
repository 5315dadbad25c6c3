"""RDM: match the losses of the worst domain with those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._distances import gaussian_kernel
from fishr_exp.trainers._one_pass import ForwardPass, Part, Penalty
from fishr_exp.trainers._terms import check_rate, check_weight, of_all_ranks

_SCALES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


class Rdm(Penalty):
    """Penalize the discrepancy between the losses of the worst domain and those of all.

        objective = R + gamma · MMD(losses of w, all losses) + variance_weight · (var l + var_w l)

    where w is the domain with the largest risk, MMD the squared maximum mean discrepancy of `Mmd`
    for numbers, with s from 0.0001 to 1000, and the variances are unbiased. Both weights are 0
    before `anneal_steps`, where the optimizer is made from scratch, with its own rate.

    Args:
        gamma: Weight of the discrepancy, finite and >= 0; 0 is ERM, without the variances, too.
        variance_weight: Weight of the variances, finite and >= 0.
        anneal_steps: Steps before both act.
        lr_after: Learning rate from then on; None: the optimizer's own.
        ramp: How gamma's weight grows from there, see `Penalty`.
        ramp_steps: Steps that this takes.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Nguyen et al. (WACV 2024, arXiv:2310.18598).

    Departs: the numbers of samples of the domains may differ, and no CUDA device is needed.
    """

    printed_name = "RDM"
    min_domains = 2

    def __init__(
        self,
        gamma: float,
        variance_weight: float = 0.004,
        anneal_steps: int = 1500,
        lr_after: float | None = 1.5e-5,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(gamma, anneal_steps, ramp, ramp_steps, l2, loss)
        check_weight("trainer.variance_weight", variance_weight)
        check_rate("trainer.lr_after", lr_after)
        self.variance_weight = variance_weight
        own = dict.fromkeys(("variance_weight", "lr_after"), anneal_steps)
        self.acts_from = {**self.acts_from, **own}
        if gamma > 0:
            self.resets = {anneal_steps: {} if lr_after is None else {"lr": lr_after}}

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The discrepancy and the variances."""
        losses = of_all_ranks(forward.batch, forward.losses)
        place, everything = int(forward.risks.argmax()), torch.cat(losses)
        kernel = gaussian_kernel(everything[:, None], _SCALES)
        # The worst domain's kernel is a block of it.
        rows = kernel.split([len(own) for own in losses])[place]
        block = rows.split([len(own) for own in losses], dim=1)[place]
        distance = block.mean() + kernel.mean() - 2 * rows.mean()
        weight = self.weight(forward.step)
        return [
            Part(distance, weight),
            Part(
                everything.var() + losses[place].var(),
                self.variance_weight * (weight > 0),
                "variance",
            ),
        ]
