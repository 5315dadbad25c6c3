"""Periodic comparison of the rules' per-sample gradients with autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..terms.moments import weighted_sum
from ..terms.uses import Plan, Term


class Tolerance(NamedTuple):
    """How much a parameter's gradient may differ from autograd's; a wrong order changes all of it.

    The difference is relative to the norm of the gradient, or to `floor` times the largest norm of
    all parameters, where that is more.
    """

    relative: float
    floor: float


FIRST = Tolerance(0.05, 1e-4)  # large enough for half precision
# During training a parameter's gradient may vanish, so that only rounding errors are left.
LATER = Tolerance(0.05, 1e-2)
LATER_IN_HALF_PRECISION = Tolerance(0.5, 0.1)


@dataclass
class Checked:
    """What is known about a model's uses of its parameters."""

    calls: int = 0
    failed: frozenset[str] = frozenset()  # names of parameters
    turned: frozenset[str] = frozenset()  # of those whose layout is not the one guessed first


_checked: WeakKeyDictionary[nn.Module, dict[Any, Checked]] = WeakKeyDictionary()
"""By model, and by its uses of parameters and their shapes."""


def known_of(model: nn.Module, plans: Sequence[Plan], count: int) -> Checked:
    """Return what is known about a model with these uses of parameters on `count` samples."""
    known = _checked.setdefault(model, {})
    uses = [(use.function, use.output.shape, *(name for name, _ in ruled)) for use, ruled in plans]
    return known.setdefault((count, *uses), Checked())


def check(
    known: Checked,
    plans: Sequence[Plan],
    terms: dict[str, list[Term]],
    turned: Callable[[frozenset[str]], dict[str, list[Term]]],
    parameters: Mapping[str, nn.Parameter],
    losses: Tensor,
    limit: int,
) -> None:
    """Find parameters whose rules give wrong gradients; correct `terms` where possible.

    A rule assumes that the first dimension is the sample, in the order of the batch. If it is
    another one of the same size (windows, positions), or the model reorders its samples, only the
    result shows it. Checked at calls 1, 2, 4, 8, ... with the same model,
    parameters and shapes: a model may change over time, and the mean cost per call goes to zero.

    Args:
        known: Of this model and its uses; what is found is added to it.
        plans: The uses.
        terms: By parameter.
        turned: Returns the terms of these parameters in the other layout, where there is one.
        parameters: By name.
        losses: [N].
        limit: Maximum number of entries of a temporary tensor.
    """
    known.calls += 1
    if known.calls & (known.calls - 1):  # not a power of two
        return
    tolerance = FIRST if known.calls == 1 else _later(plans)
    wrong = _wrong(terms, parameters, losses, limit, tolerance)
    if wrong:
        others = turned(wrong)
        right = others.keys() - _wrong(others, parameters, losses, limit, tolerance)
        known.turned |= right
        known.failed |= wrong - right
        terms.update({name: others[name] for name in right})


def _later(plans: Sequence[Plan]) -> Tolerance:
    half = any(use.output.dtype in (torch.float16, torch.bfloat16) for use, _ in plans)
    return LATER_IN_HALF_PRECISION if half else LATER


def _wrong(
    terms: Mapping[str, Sequence[Term]],
    parameters: Mapping[str, nn.Parameter],
    losses: Tensor,
    limit: int,
    tolerance: Tolerance,
) -> frozenset[str]:
    """Parameters whose randomly weighted sum of gradients differs from autograd's."""
    names = list(terms)
    if not names:
        return frozenset()
    weights = torch.randn(len(losses), generator=torch.Generator().manual_seed(0)).to(losses)
    with torch.enable_grad():
        total = (losses * weights).sum()  # for weights as `grad_outputs`, PyTorch imports SymPy
    expected = torch.autograd.grad(
        total,
        [parameters[name] for name in names],
        retain_graph=True,
        materialize_grads=True,
    )
    largest = max(float(grad.norm()) for grad in expected)
    wrong = set()
    for name, grad in zip(names, expected, strict=True):
        with torch.no_grad():
            parts = [weighted_sum(term, weights, grad.shape, limit) for term in terms[name]]
            ours = torch.stack(parts).sum(0)
        scale = max(float(grad.norm()), tolerance.floor * largest)
        if float((ours - grad).norm()) > tolerance.relative * scale:
            wrong.add(name)
    return frozenset(wrong)
