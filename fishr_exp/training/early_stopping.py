"""Early stopping: monitors one quantity, keeps the best step, decides when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fishr_exp.core.errors import ConfigError


class Verdict(NamedTuple):
    """The decision after one evaluation."""

    improved: bool
    stop: bool


class EarlyStopping:
    """Watch one quantity of the evaluation records.

    Args:
        monitor: A mean over the training domains (`validation_accuracy`, `train_loss`, ...), a
            loss that the trainer logs (`risk`, `penalty`, `objective`), or METRIC/DOMAIN/PART with
            PART `train` or `validation`. A test domain is monitored only if it is
            named here, and the result says so.
        mode: `max` or `min`.
        patience: Evaluations without improvement after which training stops; None: never.
        min_delta: An improvement must exceed it, in units of the monitored quantity, >= 0.
        keep: The checkpoint that is the run's result, `best` or `last`.

    Raises:
        ConfigError: If an argument is outside its range.
    """

    def __init__(
        self, monitor: str, mode: str, patience: int | None, min_delta: float, keep: str
    ) -> None:
        if mode not in ("max", "min"):
            raise ConfigError("observer.mode", mode, "choose from max, min")
        if patience is not None and patience < 1:
            raise ConfigError("observer.patience", patience, "must be 1 or more, or null for never")
        if not min_delta >= 0:
            raise ConfigError("observer.min_delta", min_delta, "must be 0 or more")
        if keep not in ("best", "last"):
            raise ConfigError("observer.keep", keep, "choose from best, last")
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.patience = patience
        self.min_delta = min_delta
        self.keep = keep
        self.measured: Sequence[str] = ()  # what every evaluation gives, beside the losses
        self.not_before = 0  # no patience is used up until this step, when a penalty switches on
        self.best = -math.inf  # of sign * monitored quantity
        self.best_step = 0
        self.waited = 0  # evaluations since the best one

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience

    def observe(self, step: int, numbers: Mapping[str, float]) -> Verdict:
        """Take note of an evaluation after `step` updates; `numbers` holds what it gave, by name.

        Raises:
            ConfigError: If the monitored quantity is not among them.
        """
        if self.monitor not in numbers:
            raise self._unknown(numbers)
        value = self.sign * numbers[self.monitor]
        improved = value > self.best + self.min_delta if math.isfinite(self.best) else True
        if improved:
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited = self.waited + 1 if step > self.not_before else 0
        return Verdict(improved, self.stop)

    def watches(self, domains: Sequence[str]) -> bool:
        """Whether the monitored quantity is one of these domains'."""
        _, _, rest = self.monitor.partition("/")
        return any(rest.startswith(f"{name}/") for name in domains)

    def check_losses(self, losses: Iterable[str]) -> None:
        """Refuse to watch what neither the evaluations nor the trainer's losses give.

        Raises:
            ConfigError: If the monitored quantity is not measured, and not among `losses`.
        """
        known = [*losses, *self.measured]
        if self.monitor not in known:
            raise self._unknown(known)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]

    def _unknown(self, known: Iterable[str]) -> ConfigError:
        reason = f"no evaluation gives it; choose from {', '.join(known)}"
        return ConfigError("observer.monitor", self.monitor, reason)
