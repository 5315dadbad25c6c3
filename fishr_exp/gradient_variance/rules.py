"""What each torch function makes of a parameter: the per-sample gradient of one use of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .outer import Factors
from .recorder import Use


class Direct(NamedTuple):
    """A per-sample gradient small enough to be kept."""

    gradients: Tensor  # [N, *shape of the parameter]


class Outer(NamedTuple):
    """A per-sample gradient that is a product of factors, and is never kept."""

    factors: Factors
    tensors: tuple[Tensor, ...]  # [N, ...] each


Term = Direct | Outer
Rule = Callable[[Use, Tensor, Callable[[object], str | None]], dict[str, Term]]
"""Maps a use, the gradient at its output, and the naming of parameters to a term for each."""


def linear(use: Use, delta: Tensor, name_of: Callable[[object], str | None]) -> dict[str, Term]:
    """Rule of y = x W^T + b, with any dimensions between samples and features."""
    x, weight, bias = _bind(use, "input", "weight", "bias")
    terms: dict[str, Term] = {}
    if name := name_of(weight):
        terms[name] = Outer(_linear_factors, (delta, x))
    if name := name_of(bias):
        terms[name] = Direct(delta.flatten(1, -2).sum(1) if delta.ndim > 2 else delta)
    return terms


def _linear_factors(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return _positions_last(delta), _positions_last(x)


def _positions_last(x: Tensor) -> Tensor:
    """[n, ..., K] to [n, 1, K, T]."""
    return x.reshape(len(x), 1, -1, x.shape[-1]).transpose(2, 3)


def _bind(use: Use, *names: str) -> list[Any]:
    """Arguments by position or by name; None for those that were not given."""
    given = list(use.args) + [None] * len(names)
    return [use.kwargs.get(name, given[i]) for i, name in enumerate(names)]


RULES: dict[Callable[..., Any], Rule] = {F.linear: linear}
