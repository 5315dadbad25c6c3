"""Exponential moving average of the weights."""

from __future__ import annotations

from fishr_exp.core.errors import ConfigError
from fishr_exp.training.averaging.running import Running


class Ema(Running):
    """Evaluate an exponential moving average of the weights in place of the weights.

        θ̄ ← decay · θ̄ + (1 − decay) · θ   after each step, from θ̄ = θ after step `start` on

    Args:
        decay: In [0, 1); 0 is the weights as they are.
        start: The step, 1 or more, whose weights the average starts from. Before it, the weights
            themselves are evaluated.
        batch_norm_steps: Minibatches over which the average's BatchNorm statistics are recomputed
            before every evaluation, where BatchNorm is not frozen; 0: those of the current weights.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Polyak and Juditsky (1992) for averaging; with a decay, as is common. The statistics:
        Izmailov et al. (arXiv:1803.05407).
    """

    printed_name = "EMA"

    def __init__(self, decay: float = 0.999, start: int = 1, batch_norm_steps: int = 100) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("averaging.decay", decay, "must be in [0, 1)")
        super().__init__(start, batch_norm_steps)
        self.decay = decay

    def share(self, count: int) -> float:
        """1 − decay, and all of the first weights."""
        return 1 - (self.decay if count > 1 else 0.0)
