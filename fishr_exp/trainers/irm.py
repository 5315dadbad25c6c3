"""IRMv1: let the classifier's scale be optimal in every domain at once."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._one_pass import ForwardPass, Penalized
from fishr_exp.trainers._terms import domain_means


class Irm(Penalized):
    """Penalize the gradient of each domain's risk by a scale of the logits, at scale 1.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e d_e²,    d_e = ∂R_e(s · logits) / ∂s at s = 1

    With `convention=domainbed`, d_e² is the product of the d_e of the even and of the odd samples:
    unbiased, possibly negative, and in need of 2 samples of each domain.

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        convention: `colored_mnist` (IRM's script) or `domainbed`; the schedules are those of
            `Penalized`.
        anneal_steps: Steps before gamma acts; until then the weight is 1.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        ramp: How the weight grows from 1 to gamma, see `Penalty`.
        ramp_steps: Steps that this takes.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Arjovsky, Bottou, Gulrajani and Lopez-Paz (2019, arXiv:1907.02893), IRMv1.
    """

    printed_name = "IRM"

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean over the domains of d_e²; a sample's derivative by the scale is z · ∂l/∂z."""
        delta = forward.gradients_at_logits(create_graph=True)  # [N, C]
        slopes = forward.batch.by_domain((forward.logits * delta).sum(1))  # D x [n]
        if self.convention == "colored_mnist":
            return domain_means(slopes).square().mean()
        even, odd = (domain_means([slope[i::2] for slope in slopes]) for i in (0, 1))
        return (even * odd).mean()
