"""What a model does on a part of a domain, counted in one pass; every metric is read off that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Loss, Minibatch, Model
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


METRICS: dict[str, Callable[[Counts], float]] = {
    "accuracy": lambda counts: int(counts.confusion.diagonal().sum()) / counts.samples,
    "loss": lambda counts: counts.loss / counts.samples,
}
"""What is measured of every domain and part; a new metric is one line here."""


LOWER_IS_BETTER = ("loss", "risk", "penalty", "objective")
"""Metrics, and losses of trainers, that early stopping minimizes."""


def measure(counts: Counts | None) -> dict[str, float | None]:
    """Return every metric; None of no samples."""
    if counts is None or counts.samples == 0:
        return dict.fromkeys(METRICS)
    return {name: metric(counts) for name, metric in METRICS.items()}


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
            cells = y * classes + predictions(logits)
            confusion += torch.bincount(cells, minlength=classes * classes)
            summed += loss(logits.float(), y).sum(dtype=torch.float64)
    finally:
        model.train(was_training)
    table = distributed.total(confusion).cpu().reshape(classes, classes)
    return Counts(table, distributed.total(summed).item())
