"""Gradients of parts of a batch, and at other weights: what directions are made of.

Each part has its own forward and backward pass: D of them over one domain each cost what one over
all domains costs. D backward passes through one joint forward pass would cost D times as much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Loss, Model, Objective, Trainer, trainable
from fishr_exp.core.keeping import keeping_buffers
from fishr_exp.trainers._terms import mean_risk


def each_domain(batch: Batch) -> list[Batch]:
    """Return the minibatch of each domain as a batch of its own."""
    parts = zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True)
    return [Batch(x, y, (len(y),)) for x, y in parts]


def risk_and_gradients(
    model: Model, batch: Batch, loss: Loss, parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the mean risk of a batch, over the samples of all ranks, and its gradients.

    Args:
        model: The model.
        batch: The batch; one forward pass is made over it.
        loss: Of each sample.
        parameters: By which the risk is differentiated.

    Returns:
        The risk, a scalar without graph, and for each parameter a gradient of its shape, the same
        on all ranks; zero for a parameter that the risk does not depend on.
    """
    losses = loss(model(batch.x), batch.y)
    one = len(batch.sizes) == 1 and not distributed.is_active()
    risk = losses.mean() if one else mean_risk(batch, losses)  # the same, in fewer operations
    with _out_of_autocast(risk.device.type):  # the types are those of the forward pass
        gradients = torch.autograd.grad(risk, parameters, allow_unused=True, materialize_grads=True)
    return risk.detach(), over_all_ranks(gradients)


def _out_of_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def over_all_ranks(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean over the processes of each gradient, exchanged at once."""
    if not distributed.is_active():
        return list(gradients)
    return shaped(distributed.total(flat(gradients)) / distributed.world_size(), gradients)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries of the tensors in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the entries of a vector in tensors of the shapes of others; undoes `flat`."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@contextlib.contextmanager
def moved(model: Model, parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, add a step to each parameter; afterwards, the weights are the old ones.

    Forward passes in the block leave the model's buffers as they were, such as BatchNorm's
    statistics, which belong to the old weights. No graph may be alive over the block.
    """
    weights = [parameter.data for parameter in parameters]  # put aside, not copied
    for parameter, step in zip(parameters, steps, strict=True):
        parameter.data = parameter.data + step
    torch.clear_autocast_cache()  # of the weights in half precision, which are still the old ones
    try:
        with keeping_buffers(model):
            yield
    finally:
        for parameter, own in zip(parameters, weights, strict=True):
            parameter.data = own
        torch.clear_autocast_cache()


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all entries of the tensors, a scalar."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


class Masked(Trainer):
    """Weighs the coordinates of the mean gradient of the domains' risks by their agreement.

        direction = m · ḡ / (1e-10 + mean(m)),    ḡ = (1/D) Σ_e g_e

    where the mean of m is taken over the entries of each parameter tensor, so that its direction
    keeps its size. A subclass defines `mask`. Over all tensors, the mean of m is logged as `kept`.
    """

    min_domains = 2

    def mask(self, gradients: Tensor) -> Tensor:
        """Return m, [*shape], a new tensor, from the gradients of one parameter, [D, *shape]."""
        raise NotImplementedError

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the direction for one batch; `step` counts the steps made so far."""
        del step
        parameters = trainable(model, self)
        found = [
            risk_and_gradients(model, part, self.loss, parameters) for part in each_domain(batch)
        ]
        risk = torch.stack([risk for risk, _ in found]).mean()
        directions, kept = [], []
        for of_one in zip(*(gradients for _, gradients in found), strict=True):
            gradients = torch.stack(of_one)
            mask = self.mask(gradients)
            kept.append(mask.sum())
            scale = 1 / (1e-10 + kept[-1] / mask.numel())
            directions.append(mask.mul_(gradients.mean(0)).mul_(scale))
        mean = torch.stack(kept).sum() / sum(parameter.numel() for parameter in parameters)
        logs = {"risk": risk, "kept": mean, "objective": risk}
        return Objective(risk, logs, gradients=directions)
