"""What a model does on a part of a domain, counted in one pass; every metric is read off that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Loss, Minibatch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.step import Autocast


@dataclass(frozen=True)
class Counts:
    """What one pass over samples gives; parts of a domain add up."""

    confusion: Tensor  # [C, C], int64: samples of class i (row) that were taken for class j
    loss: float  # sum over the samples

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.confusion + other.confusion, self.loss + other.loss)

    @property
    def samples(self) -> int:
        """How many samples were counted."""
        return int(self.confusion.sum())


def recalls(confusion: Tensor) -> Tensor:
    """Return the recall [<= C], float64, of each class that occurs among the labels."""
    samples = confusion.sum(1)
    return confusion.diagonal().double()[samples > 0] / samples[samples > 0]


def f1_scores(confusion: Tensor) -> Tensor:
    """Return the F1 [<= C], float64, of each class that occurs among labels or predictions.

    F1 is 2 TP / (2 TP + FP + FN): 0 for a class that occurs and is never predicted correctly.
    """
    both = confusion.sum(0) + confusion.sum(1)
    return 2 * confusion.diagonal().double()[both > 0] / both[both > 0]


METRICS: dict[str, Callable[[Counts], float]] = {
    "accuracy": lambda counts: int(counts.confusion.diagonal().sum()) / counts.samples,
    "loss": lambda counts: counts.loss / counts.samples,
    "macro_f1": lambda counts: f1_scores(counts.confusion).mean().item(),
    "worst_class": lambda counts: recalls(counts.confusion).min().item(),
    "balanced_accuracy": lambda counts: recalls(counts.confusion).mean().item(),
}
"""What can be measured of a domain and part, by `metrics`; a new metric is one line here.

Classes that do not occur are left out, as scikit-learn's `f1_score(average="macro")`,
`recall_score` and `balanced_accuracy_score` do. `worst_class` is the lowest recall.
"""


LOWER_IS_BETTER = ("loss", "risk", "penalty", "objective")
"""Metrics, and losses of trainers, that early stopping minimizes."""


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse what cannot be measured, and a list without accuracy.

    Raises:
        ConfigError: If that is so.
    """
    given = f"[{', '.join(map(str, metrics))}]"
    if unknown := [name for name in metrics if name not in METRICS]:
        reason = f"{unknown[0]} is no metric; choose from {', '.join(METRICS)}"
        raise ConfigError("metrics", given, reason)
    if "accuracy" not in metrics:
        more = ",".join(["accuracy", *metrics])
        reason = "must include accuracy, which every result and table has"
        raise ConfigError("metrics", given, reason, f"pass 'metrics=[{more}]'")


def measure(counts: Counts | None, metrics: Sequence[str]) -> dict[str, float | None]:
    """Return the metrics asked for, in the order of `METRICS`; None of no samples."""
    asked = [name for name in METRICS if name in metrics]
    if counts is None or counts.samples == 0:
        return dict.fromkeys(asked)
    return {name: METRICS[name](counts) for name in asked}


def predictions(logits: Tensor) -> Tensor:
    """Return the predicted classes [n] of logits [n, C], or [n, 1] for two classes."""
    return logits[:, 0].gt(0).long() if logits.shape[1] == 1 else logits.argmax(1)


@torch.inference_mode()
def count(
    model: Model,
    chunks: Iterable[Minibatch],
    loss: Loss,
    classes: int,
    device: torch.device,
    autocast: Autocast = contextlib.nullcontext,
    look: Callable[[Tensor, Tensor], None] | None = None,
) -> Counts:
    """Count predictions and add up losses, in evaluation mode.

    Over the chunks of all processes, each of which calls with its own.

    Args:
        model: The model.
        chunks: The samples.
        loss: Of each sample.
        classes: C, the number of classes.
        device: Where the model is.
        autocast: Makes the context of forward passes.
        look: Is shown the logits and labels of each chunk.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    summed = torch.zeros((), dtype=torch.float64, device=device)
    try:
        for chunk in chunks:
            x, y = chunk.to(device)
            with autocast():
                logits = model(x)
            if look:
                look(logits, y)
            cells = y * classes + predictions(logits)
            confusion += torch.bincount(cells, minlength=classes * classes)
            summed += loss(logits.float(), y).sum(dtype=torch.float64)
    finally:
        model.train(was_training)
    table = distributed.total(confusion).cpu().reshape(classes, classes)
    return Counts(table, distributed.total(summed).item())
