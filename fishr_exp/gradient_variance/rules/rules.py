"""The rule for each torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..engines.recorder import give_copies
from ..terms.uses import Direct, MakeTerm, Rule, Use
from .convolution import convolution, transposed_convolution
from .embedding import embedding
from .linear import addmm, linear, matmul, mm


def _copied(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """A parameter of which the recorder gave each sample its own copy."""
    parameter, _ = use.args
    if use.guessed and use.guess != 0:
        return None

    def of_copy(delta: Tensor) -> Direct:
        return Direct(use.samples_first(delta, count).reshape(count, *parameter.shape))

    return [(parameter, of_copy)]


RULES: dict[Callable[..., Any], Rule] = {
    F.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.mm: mm,
    Tensor.mm: mm,
    torch.addmm: addmm,
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.conv3d: convolution,
    torch.conv_transpose1d: transposed_convolution,
    torch.conv_transpose2d: transposed_convolution,
    torch.conv_transpose3d: transposed_convolution,
    F.embedding: embedding,
    give_copies: _copied,
}
