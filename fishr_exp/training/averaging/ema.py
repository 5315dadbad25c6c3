"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch

from fishr_exp.core.contracts import Averaging, Model
from fishr_exp.core.errors import ConfigError


class Ema(Averaging):
    """Evaluate an exponential moving average of the weights in place of the weights.

        θ̄ ← decay · θ̄ + (1 − decay) · θ   after each step, from θ̄ = θ after step `start` on

    Args:
        decay: In [0, 1); 0 is the weights as they are.
        start: The step, 1 or more, whose weights the average starts from. Before it, the weights
            themselves are evaluated.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Polyak and Juditsky (1992) for averaging; with a decay, as is common.
    Departs: buffers, such as BatchNorm's running statistics, are those of the current weights.
    """

    count: torch.Tensor

    def __init__(self, decay: float = 0.999, start: int = 1) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError("averaging.decay", decay, "must be in [0, 1)")
        if start < 1:
            raise ConfigError("averaging.start", start, "must be 1 or more")
        self.decay, self.start = decay, start
        self.register_buffer("count", torch.tensor(0))  # steps in the average

    def prepare(self, model: Model) -> None:
        """Keep a copy of the model for the average."""
        self.mean = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        """Take the weights into the average."""
        if step < self.start:
            return
        decay = self.decay if self.count else 0.0
        self.count += 1
        for mean, weight in zip(self.mean.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for kept, current in zip(self.mean.buffers(), model.buffers(), strict=True):
            kept.copy_(current)

    def averaged(self, model: Model) -> Model:
        """The average, once there is one."""
        return self.mean if self.count else model
