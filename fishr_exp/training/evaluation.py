"""Accuracy of a model on a part of a domain."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fishr_exp.contracts import Minibatch, Model


def predictions(logits: Tensor) -> Tensor:
    """Return the predicted classes [n] of logits [n, C], or [n, 1] for two classes."""
    return logits[:, 0].gt(0).long() if logits.shape[1] == 1 else logits.argmax(1)


@torch.inference_mode()
def accuracy(model: Model, chunks: Iterable[Minibatch], device: torch.device) -> float | None:
    """Return the fraction of correct predictions, in evaluation mode; None of no samples."""
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    for x, y in chunks:
        correct += (predictions(model(x.to(device))) == y.to(device)).sum()
        count += len(y)
    model.train(was_training)
    return correct.item() / count if count else None
