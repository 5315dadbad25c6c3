"""Accuracy of a model on a part of a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor

from fishr_exp import ranks
from fishr_exp.contracts import Minibatch, Model
from fishr_exp.training.step import Autocast


def predictions(logits: Tensor) -> Tensor:
    """Return the predicted classes [n] of logits [n, C], or [n, 1] for two classes."""
    return logits[:, 0].gt(0).long() if logits.shape[1] == 1 else logits.argmax(1)


@torch.inference_mode()
def accuracy(
    model: Model,
    chunks: Iterable[Minibatch],
    device: torch.device,
    autocast: Autocast = contextlib.nullcontext,
) -> float | None:
    """Return the fraction of correct predictions, in evaluation mode; None of no samples.

    Over the chunks of all ranks, each of which calls with its own.
    """
    was_training = model.training
    model.eval()
    counted = torch.zeros(2, dtype=torch.int64, device=device)  # correct ones, all
    try:
        for chunk in chunks:
            x, y = chunk.to(device)
            with autocast():
                logits = model(x)
            counted[0] += (predictions(logits) == y).sum()
            counted[1] += len(y)
    finally:
        model.train(was_training)
    correct, count = ranks.total(counted).tolist()
    return correct / count if count else None
