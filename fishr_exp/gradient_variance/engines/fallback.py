"""Per-sample gradients of any model, by running each sample separately: exact, but slow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autograd.double_backward import TwiceDifferentiable
from ..errors import UnsupportedError
from .probe import Probe, Way
from .scripted import holds_scripted_code

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

    By `torch.func`, vectorized over samples, where that gives what the batch gives; else in a loop.

    Args:
        model: The model.
        inputs: [N, ...].
        targets: [N].
        parameters: Parameters to differentiate with respect to.
        loss: Maps logits [1, C] and targets [1] to losses [1].
        losses: [N], from the forward pass over the whole batch, to compare with.
        create_graph: Whether the gradients are differentiable.

    Raises:
        UnsupportedError: If a sample's loss on its own is not its loss in the batch.
    """
    with TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):  # modes do not see the fused kernels
        way = _way(model, inputs, targets, parameters, loss, create_graph)
        try:
            gradients, alone = way(model, inputs, targets, parameters, loss, create_graph)
        except RuntimeError:  # if it is the model's own, the loop raises it again
            if way is not _vectorized:
                raise
            gradients, alone = _in_a_loop(model, inputs, targets, parameters, loss, create_graph)
    tolerance = 1e-6 if losses.dtype == torch.float64 else 1e-2
    if not torch.allclose(alone.to(losses.dtype), losses, rtol=tolerance, atol=tolerance):
        raise UnsupportedError(
            f"per-sample gradients of {', '.join(parameters)}: a sample's loss on its own differs "
            "from its loss in the batch; the model couples samples, or draws random numbers"
        )
    return gradients if create_graph else {name: g.detach() for name, g in gradients.items()}


@dataclass
class _Chosen:
    """The way in which a model's per-sample gradients are computed: an index of `_WAYS`."""

    way: int = 0
    calls: int = 0


_chosen: WeakKeyDictionary[nn.Module, dict[Any, _Chosen]] = WeakKeyDictionary()
"""By model, and by whether the gradients are differentiable and the names of the parameters."""


def _way(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    create_graph: bool,
) -> Way:
    """Return the first way that agrees with the batch.

    Compared at calls 1, 2, 4, 8, ..., because scripted code may become wrong only after torch has
    optimized it. A way that has disagreed is not used again; the last is used without comparison,
    so that rounding never refuses a correct model.
    """
    chosen = _chosen.setdefault(model, {}).setdefault((create_graph, *parameters), _Chosen())
    chosen.calls += 1
    last = len(_WAYS) - 1
    if chosen.calls & (chosen.calls - 1) or chosen.way == last:  # not a power of two
        return _WAYS[chosen.way][1]
    if chosen.way == 0 and holds_scripted_code(model):
        chosen.way = 1
    probe = Probe(model, inputs, targets, parameters, loss, create_graph)
    if not probe.can_compare:  # a loop fails like the batch; torch.func may be silently wrong
        chosen.way = max(chosen.way, 1)
    while probe.can_compare and chosen.way < last:
        name, way = _WAYS[chosen.way]
        reason = probe.disagreement(way, may_fail=way is _vectorized)
        if reason is None:
            break
        chosen.way += 1
        _log.info("%s %s; now %s", name, reason, _WAYS[chosen.way][0])
    return _WAYS[chosen.way][1]


def _vectorized(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    create_graph: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """Run all samples at once."""
    del create_graph  # there is a graph in any case

    def one(selected: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, selected, (x.unsqueeze(0),))
        return loss(logits, y.unsqueeze(0)).sum()

    each = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0, 0))
    with torch.enable_grad():
        return each(dict(parameters), inputs, targets)


def _in_a_loop(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    create_graph: bool,
    copies: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    """Run one sample after another, as a batch of `copies` of itself."""
    rows, values = [], []
    for i in range(len(inputs)):
        with torch.enable_grad():
            logits = model(inputs[[i] * copies])
            own = loss(logits[:1], targets[i : i + 1]).sum()
        rows.append(
            torch.autograd.grad(
                own, list(parameters.values()), create_graph=create_graph, materialize_grads=True
            )
        )
        values.append(own.detach())
    columns = zip(*rows, strict=True)
    gradients = {name: torch.stack(g) for name, g in zip(parameters, columns, strict=True)}
    return gradients, torch.stack(values)


_WAYS: tuple[tuple[str, Way], ...] = (
    ("torch.func", _vectorized),
    ("a loop over samples", _in_a_loop),
    # Some second derivatives of torch are wrong at batch size 1.
    ("a loop over samples, each beside a copy of itself", partial(_in_a_loop, copies=2)),
)
"""By name, from fast to slow, and from least to most reliable."""
