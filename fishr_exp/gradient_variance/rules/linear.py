"""Rules for matrix products: `linear`, and `matmul` with a parameter on the right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..terms.uses import Direct, MakeTerm, Outer, Use


def linear(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W^T + b, with any dimensions between samples and features.

    At each position t, dy_t gives dW = dy_t x_t^T and db = dy_t.
    """
    x, weight, bias = use.bind("input", "weight", "bias")
    if x.ndim < 2:
        return None
    x = use.samples_first(x, count)
    if len(x) != count:
        return None

    def of_bias(delta: Tensor) -> Direct:
        delta = use.samples_first(delta, count)
        return Direct(delta.flatten(1, -2).sum(1) if delta.ndim > 2 else delta)

    return [
        (weight, lambda delta: Outer(_factors, (use.samples_first(delta, count), x))),
        (bias, of_bias),
    ]


def matmul(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W, with any dimensions between samples and features."""
    x, weight = use.bind("input", "other")
    if x.ndim < 2 or weight.ndim != 2 or len(x) != count:
        return None
    x = use.samples_first(x, count)
    return [(weight, lambda delta: Outer(_factors, (x, use.samples_first(delta, count))))]


def _factors(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return _positions(rows), _positions(columns)


def _positions(x: Tensor) -> Tensor:
    """[n, ..., K] to [n, 1, T, K]."""
    return x.reshape(len(x), 1, -1, x.shape[-1])
