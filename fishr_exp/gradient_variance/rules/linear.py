"""Rules for matrix products: `linear`, and products with a parameter on the right."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..terms.outer import of_vectors
from ..terms.uses import Direct, MakeTerm, Outer, Use


def linear(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W^T + b, with any dimensions between samples and features.

    At each position t, dy_t gives dW = dy_t x_t^T and db = dy_t.
    """
    x, weight, bias = use.bind("input", "weight", "bias")
    laid_out = use.laid_out(x, count) if x.ndim > 1 else None
    if laid_out is None:
        return None
    x = laid_out.samples_first(x, count)

    def of_weight(delta: Tensor) -> Outer:
        return Outer(of_vectors, (laid_out.samples_first(delta, count), x))

    return [(weight, of_weight), (bias, partial(_sum_over_positions, laid_out, count))]


def matmul(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W, with any dimensions between samples and features."""
    x, weight = use.bind("input", "other")
    return _right_product(use, count, x, weight)


def mm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W of matrices."""
    x, weight = use.bind("input", "mat2")
    return _right_product(use, count, x, weight)


def addmm(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Y = x W + b of matrices."""
    bias, x, weight = use.bind("input", "mat1", "mat2")
    if use.kwargs.get("beta", 1) != 1 or use.kwargs.get("alpha", 1) != 1:
        return None
    found = _right_product(use, count, x, weight)
    laid_out = use.laid_out(x, count)
    if found is None or laid_out is None or bias.ndim != 1:
        return found
    return [*found, (bias, partial(_sum_over_positions, laid_out, count))]


def _right_product(use: Use, count: int, x: Any, weight: Any) -> list[tuple[Any, MakeTerm]] | None:
    if not isinstance(x, Tensor) or x.ndim < 2 or weight.ndim != 2:
        return None
    laid_out = use.laid_out(x, count)
    if laid_out is None:
        return None
    x = laid_out.samples_first(x, count)
    return [(weight, lambda delta: Outer(of_vectors, (x, laid_out.samples_first(delta, count))))]


def _sum_over_positions(use: Use, count: int, delta: Tensor) -> Direct:
    delta = use.samples_first(delta, count)
    return Direct(delta.flatten(1, -2).sum(1) if delta.ndim > 2 else delta)
