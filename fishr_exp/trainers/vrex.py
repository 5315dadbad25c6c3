"""V-REx: let the domains' risks be equal."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._one_pass import ForwardPass, Penalized


class Vrex(Penalized):
    """Penalize the variance of the domains' risks.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e (R_e − R)²,    R = (1/D) Σ_e R_e

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        convention: `domainbed` (as above) or `colored_mnist` (IRM's script with the V-REx penalty:
            the squared differences summed over all pairs of domains, D² times the variance); the
            schedules are those of `Penalized`.
        anneal_steps: Steps before gamma acts; until then the weight is 1.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        ramp: How the weight grows from 1 to gamma, see `Penalty`.
        ramp_steps: Steps that this takes.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Krueger et al. (ICML 2021, arXiv:2003.00688).

    Departs: the scripts have two domains; for more, `colored_mnist` sums over pairs.
    """

    printed_name = "V-REx"
    min_domains = 2

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Variance of the domains' risks."""
        risks = forward.risks  # [D]
        variance = (risks - risks.mean()).square().mean()
        return len(risks) ** 2 * variance if self.convention == "colored_mnist" else variance
