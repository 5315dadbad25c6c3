"""Per-sample gradients of any model, by running each sample separately: exact, but slow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autograd.double_backward import TwiceDifferentiable
from ..autograd.normalization import uses_batch_statistics
from ..errors import UnsupportedError

_log = logging.getLogger(__name__)


def gradients_one_by_one(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    losses: Tensor,
    create_graph: bool,
) -> dict[str, Tensor]:
    """Per-sample gradients [N, *shape] by parameter, from a second forward pass.

    By `torch.func`, vectorized over samples; if it does not support the model, in a loop.

    Args:
        model: The model.
        inputs: [N, ...].
        targets: [N].
        parameters: Parameters to differentiate with respect to.
        loss: Maps logits [1, C] and targets [1] to losses [1].
        losses: [N], from the forward pass over the whole batch, to compare with.
        create_graph: Whether the gradients are differentiable.

    Raises:
        UnsupportedError: If a sample's loss on its own is not its loss in the batch, or the model
            needs the statistics of a batch.
    """
    with _SingleSamples(), sdpa_kernel(SDPBackend.MATH):  # modes do not see the fused kernels
        found = _vectorized(model, inputs, targets, parameters, loss)
        if found is None:
            found = _in_a_loop(model, inputs, targets, parameters, loss, create_graph)
    gradients, alone = found
    tolerance = 1e-6 if losses.dtype == torch.float64 else 1e-2
    if not torch.allclose(alone.to(losses.dtype), losses, rtol=tolerance, atol=tolerance):
        raise UnsupportedError(
            f"per-sample gradients of {', '.join(parameters)}: a sample's loss on its own differs "
            "from its loss in the batch; the model couples samples, or draws random numbers"
        )
    return gradients if create_graph else {name: g.detach() for name, g in gradients.items()}


class _SingleSamples(TwiceDifferentiable):
    """While active, a model runs on single samples, which have no batch statistics."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm and uses_batch_statistics(args, kwargs or {}):
            raise UnsupportedError(
                "BatchNorm in training mode, and a selected parameter without a rule: its "
                "per-sample gradients need each sample on its own, which has no batch statistics; "
                "put BatchNorm into evaluation mode, or choose a different scope"
            )
        return super().__torch_function__(func, types, args, kwargs)


def _vectorized(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[dict[str, Tensor], Tensor] | None:
    """Gradients [N, *shape] and losses [N]; None if `torch.func` cannot differentiate the model."""

    def one(selected: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, selected, (x.unsqueeze(0),))
        return loss(logits, y.unsqueeze(0)).sum()

    each = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0, 0))
    try:
        with torch.enable_grad():
            return each(dict(parameters), inputs, targets)
    except RuntimeError as error:  # if it is the model's own, the loop raises it again
        _log.info(
            "torch.func does not support this model (%s); each sample is run separately", error
        )
        return None


def _in_a_loop(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    create_graph: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    rows, values = [], []
    for i in range(len(inputs)):
        with torch.enable_grad():
            own = loss(model(inputs[i : i + 1]), targets[i : i + 1]).sum()
        rows.append(
            torch.autograd.grad(
                own, list(parameters.values()), create_graph=create_graph, materialize_grads=True
            )
        )
        values.append(own.detach())
    columns = zip(*rows, strict=True)
    gradients = {name: torch.stack(g) for name, g in zip(parameters, columns, strict=True)}
    return gradients, torch.stack(values)
