"""The early-stopping observer: watches one quantity, names the best step, says when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fishr_exp.errors import ConfigError


class Verdict(NamedTuple):
    """What the observer says of one evaluation."""

    improved: bool
    stop: bool


class Observer:
    """Watch one quantity of the evaluation records.

    Args:
        monitor: `validation_accuracy` or `train_accuracy` (means over the training domains), a
            loss (`risk`, `penalty`, `objective`), or `accuracy/DOMAIN/PART` with PART `train` or
            `validation`. A test domain is watched only when named so, and the record says it.
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
        self.not_before = 0  # no patience is used up until this step, when a penalty switches on
        self.best = -math.inf  # of sign * monitored quantity
        self.best_step = 0
        self.waited = 0  # evaluations since the best one

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience

    def observe(self, record: Mapping[str, Any]) -> Verdict:
        """Take note of one evaluation record."""
        value = self.sign * self._read(record)
        improved = value > self.best + self.min_delta if math.isfinite(self.best) else True
        if improved:
            self.best, self.best_step, self.waited = value, record["step"], 0
        else:
            self.waited = self.waited + 1 if record["step"] > self.not_before else 0
        return Verdict(improved, self.stop)

    def watches(self, domains: Sequence[str]) -> bool:
        """Whether the monitored quantity is one of these domains'."""
        return any(self.monitor.startswith(f"accuracy/{name}/") for name in domains)

    def check_losses(self, losses: Iterable[str]) -> None:
        """Refuse to watch a loss that the method does not give.

        Raises:
            ConfigError: If the monitored quantity is no accuracy and none of `losses`.
        """
        if "accuracy" not in self.monitor and self.monitor not in losses:
            raise self._unknown(losses)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]

    def _read(self, record: Mapping[str, Any]) -> float:
        known = quantities(record)
        value = known.get(self.monitor)
        if value is None:
            raise self._unknown(known)
        return value

    def _unknown(self, known: Iterable[str]) -> ConfigError:
        reason = f"no evaluation gives it; choose from {', '.join(known)}"
        return ConfigError("observer.monitor", self.monitor, reason)


def quantities(record: Mapping[str, Any]) -> dict[str, float]:
    """Flatten an evaluation record into named numbers: losses, means, `accuracy/DOMAIN/PART`."""
    flat = dict(record["losses"])
    for mean in ("train_accuracy", "validation_accuracy"):
        flat[mean] = record[mean]
    for domain, parts in record["accuracy"].items():
        for part, value in parts.items():
            flat[f"accuracy/{domain}/{part}"] = value
    return {name: value for name, value in flat.items() if value is not None}
