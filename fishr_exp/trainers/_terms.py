"""Terms of objectives that several methods share."""

from __future__ import annotations

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
