"""What the running means of the weights have in common."""

from __future__ import annotations

import copy

import torch

from fishr_exp.core.contracts import Averaging, Model
from fishr_exp.core.errors import ConfigError


class Running(Averaging):
    """Evaluate a running mean of the weights in place of the weights.

        θ̄ ← θ̄ + share · (θ − θ̄)   after each step, from θ̄ = θ after step `start` on

    A subclass defines `share`.

    Args:
        start: The step, 1 or more, whose weights the mean starts from. Before it, the weights
            themselves are evaluated.
        batch_norm_steps: Minibatches over which the mean's BatchNorm statistics are recomputed
            before every evaluation, where BatchNorm is not frozen; 0: those of the current weights.

    Raises:
        ConfigError: If an argument is outside its range.
    """

    count: torch.Tensor

    def __init__(self, start: int, batch_norm_steps: int) -> None:
        super().__init__()
        if start < 1:
            raise ConfigError("averaging.start", start, "must be 1 or more")
        check_batch_norm_steps(batch_norm_steps)
        self.start = self.first_step = start
        self.batch_norm_steps = batch_norm_steps
        self.register_buffer("count", torch.tensor(0))  # steps in the mean

    def share(self, count: int) -> float:
        """Return the share of the newest weights in a mean of `count` steps."""
        raise NotImplementedError

    def prepare(self, model: Model) -> None:
        """Keep a copy of the model for the mean."""
        self.mean = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        """Take the weights into the mean."""
        if step < self.start:
            return
        self.count += 1
        share = self.share(step - self.start + 1)  # the count, without waiting for the device
        for mean, weight in zip(self.mean.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, share)
        for kept, current in zip(self.mean.buffers(), model.buffers(), strict=True):
            kept.copy_(current)

    def averaged(self, model: Model) -> Model:
        """The mean, once there is one."""
        return self.mean if self.count else model


def check_batch_norm_steps(steps: int) -> None:
    """Refuse a negative number of minibatches."""
    if steps < 0:
        raise ConfigError("averaging.batch_norm_steps", steps, "must be 0 or more")
