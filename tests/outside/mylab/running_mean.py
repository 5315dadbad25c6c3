"""A scheme of averaging weights: the mean over all steps."""

from __future__ import annotations

import copy

import torch

from fishr_exp.core.contracts import Averaging, Model


class RunningMean(Averaging):
    """The mean of the weights after every step from `start` on.

    Args:
        start: The first step that counts.
    """

    def __init__(self, start: int = 1) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("count", torch.tensor(0))

    def prepare(self, model: Model) -> None:
        """Keep a copy of the model for the mean."""
        self.mean = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        """Take the weights into the mean."""
        if step < self.start:
            return
        self.count += 1
        for mean, weight in zip(self.mean.parameters(), model.parameters(), strict=True):
            mean += (weight - mean) / self.count

    def averaged(self, model: Model) -> Model:
        """The mean, once there is one."""
        return self.mean if self.count else model
