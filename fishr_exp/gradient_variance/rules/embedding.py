"""Rule for embedding tables."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..terms.uses import MakeTerm, Outer, Use


def embedding(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """y_t = W[index_t]: dW = sum_t onehot(index_t) dy_t^T, without the padding index."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
    index, weight, padding, _, _, by_frequency = use.bind(*names)
    laid_out = use.laid_out(index.unsqueeze(-1), count)
    if laid_out is None or by_frequency:
        return None
    if padding is not None:
        padding %= len(weight)
    index = laid_out.samples_first(index.unsqueeze(-1), count)  # [N, ..., 1]
    factors = partial(_factors, rows=len(weight), padding=padding)
    return [(weight, lambda delta: Outer(factors, (index, laid_out.samples_first(delta, count))))]


def _factors(
    index: Tensor, delta: Tensor, *, rows: int, padding: int | None
) -> tuple[Tensor, Tensor]:
    index = index.reshape(len(index), -1, 1)  # [n, T, 1]
    selected = index == torch.arange(rows, device=index.device)  # [n, T, V]
    if padding is not None:
        selected = selected & (index != padding)
    right = delta.reshape(len(delta), 1, -1, delta.shape[-1])  # [n, 1, T, E]
    return selected.to(delta.dtype).unsqueeze(1), right
