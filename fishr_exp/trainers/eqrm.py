"""EQRM: minimize a quantile of the domains' risks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass
from fishr_exp.trainers._terms import check_rate, check_steps

_BISECTIONS = 32


class Eqrm(OnePass):
    """Minimize a quantile of a kernel density over the domains' risks.

        objective = R before `anneal_steps`, then v with (1/D) Σ_e Φ((v − R_e) / h) = quantile
        h = 1.06 · s · D^(−1/5)

    with s the unbiased standard deviation of the risks. v lies between min_e R_e + h z and
    max_e R_e + h z, where z is the normal distribution's quantile. What is differentiated is
    v = (1 − t) · (min_e R_e + h z) + t · (max_e R_e + h z) with the t that a bisection finds, taken
    as a constant. At `anneal_steps` the optimizer is made from scratch, with its own rate.

    Args:
        quantile: In (0, 1); or log(1 − quantile), which is below 0, for one very close to 1: the
            objective is then the mean of R_e + h · sqrt(−2 · log(1 − quantile)).
        anneal_steps: Steps with the mean risk, before the quantile.
        lr_after: Learning rate from then on; None: the optimizer's own.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Eastwood et al. (NeurIPS 2022, arXiv:2207.09944), Algorithm 1.

    Departs: from DomainBed, whose drawn burn-in is no whole number, so that its new optimizer and
    rate never come. If all risks are equal, the objective is their mean.
    """

    printed_name = "EQRM"
    min_domains = 2

    def __init__(
        self,
        quantile: float = 0.75,
        anneal_steps: int = 2500,
        lr_after: float | None = 1e-6,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        if not (0 < quantile < 1 or -math.inf < quantile < 0):
            reason = "must be in (0, 1), or log(1 - quantile), which is below 0"
            raise ConfigError("trainer.quantile", quantile, reason)
        if quantile > 0 and math.isinf(_of_normal(quantile)):
            raise ConfigError("trainer.quantile", quantile, "is too close to 0 to be computed with")
        check_steps("trainer.anneal_steps", anneal_steps)
        check_rate("trainer.lr_after", lr_after)
        self.quantile, self.anneal_steps = quantile, anneal_steps
        self.resets = {anneal_steps: {} if lr_after is None else {"lr": lr_after}}
        self.acts_from = {"quantile": anneal_steps, "lr_after": anneal_steps}

    def risk(self, forward: ForwardPass) -> Tensor:
        """The quantile of the domains' risks, after `anneal_steps`."""
        risks = forward.risks
        if forward.step < self.anneal_steps or risks.detach().std() == 0:
            return risks.mean()
        bandwidth = 1.06 * risks.std() * len(risks) ** -0.2
        if self.quantile < 0:
            return (risks + bandwidth * math.sqrt(-2 * self.quantile)).mean()
        z = _of_normal(self.quantile)
        low, high = risks.min() + bandwidth * z, risks.max() + bandwidth * z
        t = _bisected(self.quantile, risks.tolist(), bandwidth.item(), (low.item(), high.item()))
        return (1 - t) * low + t * high


def _of_normal(quantile: float) -> float:
    """Return the quantile of the standard normal distribution."""
    given = torch.tensor(quantile, dtype=torch.float64)
    return torch.distributions.Normal(0.0, 1.0).icdf(given).item()


def _bisected(
    quantile: float, risks: list[float], width: float, ends: tuple[float, float]
) -> float:
    """Return how far between two ends the density's quantile lies, from 0 to 1."""
    least, most = 0.0, 1.0
    for _ in range(_BISECTIONS):
        t = (least + most) / 2
        v = (1 - t) * ends[0] + t * ends[1]
        below = sum(math.erfc((risk - v) / (width * math.sqrt(2))) / 2 for risk in risks)
        least, most = (least, t) if below / len(risks) > quantile else (t, most)
    return (least + most) / 2
