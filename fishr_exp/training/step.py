"""One optimizer update, the same for every method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from fishr_exp import ranks
from fishr_exp.contracts import Batch, Model, Objective
from fishr_exp.errors import TrainingError


class Method(Protocol):
    """What the loop asks of a method; it is an `nn.Module` too, so that its state is saved.

    A method may have an attribute `reset_optimizer_at`: the step before which the optimizer is
    made anew, or None.
    """

    min_domains: int  # training domains that it needs

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch, after `step` updates."""
        ...


Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context of forward passes: `torch.autocast`, or none."""


def optimizer_step(
    method: Method,
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    autocast: Autocast = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """Update the model once and return the method's logs, freed from the graph.

    Raises:
        TrainingError: If the objective is NaN or infinite; the weights are left as they were.
    """
    with autocast():  # and not the backward pass, which takes the types of the forward one
        objective = method.objective(model, batch, step)
    if not torch.isfinite(objective.total):  # waits for the device; a lost night costs more
        parts = ", ".join(f"{name} {value.item():g}" for name, value in objective.logs.items())
        raise TrainingError(f"the objective is not finite at step {step} ({parts})")
    optimizer.zero_grad(set_to_none=True)
    objective.total.backward()
    ranks.average_gradients(model.parameters())
    optimizer.step()
    return {name: value.detach() for name, value in objective.logs.items()}


def check_weights(model: nn.Module, step: int) -> None:
    """Refuse NaN and infinities in the model's state, which a finite objective may leave behind.

    Raises:
        TrainingError: If there is one, after `step` updates.
    """
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in state]).all():
        raise TrainingError(f"the model's weights are not finite after step {step}")


def as_module(method: Method) -> nn.Module:
    """Return the method as the module that it is."""
    assert isinstance(method, nn.Module)
    return method
