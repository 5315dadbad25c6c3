"""Simple moving average of the weights."""

from __future__ import annotations

from fishr_exp.training.averaging.running import Running


class Sma(Running):
    """Evaluate the mean of the weights of all steps from `start` on in place of the weights.

        θ̄_k = 1/(k − start + 1) Σ_{i = start}^{k} θ_i,   θ_i the weights after update i

    Args:
        start: The first step in the mean, 1 or more. Before it, the weights themselves are
            evaluated.
        batch_norm_steps: Minibatches over which the mean's BatchNorm statistics are recomputed
            before every evaluation, where BatchNorm is not frozen; 0: those of the current weights.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Arpit et al. (arXiv:2110.10832), the moving average of "Ensemble of Averages", with
        start 100; called MA in DiWA (Ramé et al., arXiv:2205.09739).
    Departs: EoA's code counts the weights of update 99 once, too, which is `start` 99 here; DiWA's
        counts those of update 100 twice, since its mean shares their memory until then. EoA's
        averages the BatchNorm statistics, DiWA's leaves them at their initial values; BatchNorm is
        frozen in both, so that this has no effect.
    """

    printed_name = "SMA"

    def __init__(self, start: int = 100, batch_norm_steps: int = 100) -> None:
        super().__init__(start, batch_norm_steps)

    def share(self, count: int) -> float:
        """One part in `count`."""
        return 1 / count
