"""A penalty on the logits."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers import ForwardPass, Penalized


class LogitDecay(Penalized):
    """The mean risk plus gamma times the mean squared logit."""

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean of the squared logits."""
        return forward.logits.square().mean()
