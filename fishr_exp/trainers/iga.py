"""IGA: match the mean gradients of the domains, over all parameters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fishr_exp.core.contracts import Batch
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, UnsupportedError, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass
from fishr_exp.trainers.fishr import Fishr


class Iga(Fishr):
    """Penalize the spread of the domains' gradients.

        objective = R + gamma · Σ_e ‖g_e − g‖²,    g = (1/D) Σ_e g_e

    where g_e is the gradient of R_e with respect to all parameters. It is Fishr with the mean in
    place of the variance.

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        anneal_steps: Optimizer updates before gamma acts.
        ramp: How the weight grows from there to gamma, see `Penalty`.
        ramp_steps: Optimizer updates that this takes.
        batch_statistics: Where BatchNorm in training mode couples the samples, see `Fishr`.
        memory_limit: Most of a temporary tensor of per-sample gradients, in MiB.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Koyama and Yamaguchi (2020, arXiv:2008.01883), version 2; as a sum, DomainBed.
    """

    printed_name = "IGA"

    def __init__(
        self,
        gamma: float,
        anneal_steps: int = 0,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        batch_statistics: str = "refuse",
        memory_limit: float = 128.0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(
            gamma, scope="all", anneal_steps=anneal_steps, l2=l2, statistic="mean",
            batch_statistics=batch_statistics, memory_limit=memory_limit, ramp=ramp,
            ramp_steps=ramp_steps, loss=loss,
        )  # fmt: skip
        self.refuses_compile = (
            "trainer=iga needs second derivatives of the featurizer, which compiled code does not "
            "have; pass compile=false"
        )

    def more_logs(self, forward: ForwardPass) -> dict[str, Tensor]:
        """Nothing: Fishr's gamma is of another statistic."""
        del forward
        return {}

    def _refusal(self, error: UnsupportedError) -> ConfigError:
        reason = f"the gradients of all parameters cannot be had ({error})"
        return ConfigError("trainer", "iga", reason, "choose another trainer or model")

    def _divisor(self, batch: Batch, entries: int) -> int:
        del batch, entries
        return 1  # a sum over domains and coordinates
