"""BatchNorm statistics of averaged weights, recomputed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Model
from fishr_exp.core.keeping import keeping_modes, keeping_random_streams
from fishr_exp.training.step import Autocast

Norms = list[nn.modules.batchnorm._BatchNorm]


def learning_norms(model: Model) -> Norms:
    """Return the BatchNorm layers that learn their statistics in training: not the frozen ones."""
    with keeping_modes(model):
        model.train()  # in which frozen ones stay in evaluation mode
        return [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training
            and module.running_mean is not None
        ]


@torch.no_grad()
def recompute_statistics(
    model: Model,
    norms: Norms,
    inputs: Iterable[Tensor],
    autocast: Autocast = contextlib.nullcontext,
) -> None:
    """Set BatchNorm statistics to the means of those of minibatches.

    All else is in evaluation mode, as in the evaluations that the statistics are for: features are
    not dropped, and frozen BatchNorm keeps its statistics, which `torch.optim.swa_utils.update_bn`
    would reset. The random streams stay where they are.

    Args:
        model: On its device.
        norms: Its layers with statistics to recompute, from `learning_norms`.
        inputs: Samples [N, ...] of all training domains, one minibatch after another.
        autocast: Makes the context of forward passes.
    """
    momenta = [norm.momentum for norm in norms]
    try:
        with keeping_random_streams(model), keeping_modes(model):
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over minibatches
            for x in inputs:
                with autocast():
                    model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
