"""Terms of objectives that several methods share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fishr_exp.contracts import Batch, Model


def mean_risk(batch: Batch, losses: Tensor) -> Tensor:
    """Mean over the domains of each domain's mean loss: (1/D) Σ_e R_e.

    Args:
        batch: The batch that the losses belong to.
        losses: Per-sample losses, [N].
    """
    return torch.stack([domain_losses.mean() for domain_losses in batch.by_domain(losses)]).mean()


def squared_norm(model: Model) -> Tensor:
    """Σ‖w‖² over all parameters of the model, biases included."""
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


@contextlib.contextmanager
def leaving_no_trace(model: Model) -> Iterator[None]:
    """Undo what forward passes in the block do to the random streams and the model's buffers."""
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    for buffer, before in buffers:
        buffer.copy_(before)
