"""A penalty on the logits."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers import ForwardPass, Penalty, domain_means


class LogitDecay(Penalty):
    """The mean risk plus gamma times the mean squared logit."""

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean over the domains, of the samples of all processes."""
        squares = forward.logits.square().mean(1)  # [N]
        return domain_means(forward.batch.by_domain(squares)).mean()
