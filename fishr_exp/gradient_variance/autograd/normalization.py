"""Normalization layers, split into the normalization and the affine map after it.

The affine parameters are then broadcast over the samples like any bare parameter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .standardize import standardize


def uses_batch_statistics(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `F.batch_norm` with these arguments normalizes by the statistics of the batch."""
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


Give = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Maps a parameter, and the shape that it has to be broadcast to, to its replacement."""


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    del cudnn_enable  # only `torch.layer_norm` has it
    rows = x.reshape(-1, math.prod(normalized_shape))
    return standardize(rows, eps).view(x.shape), weight, bias


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    rows = x.reshape(len(x) * num_groups, -1)
    return standardize(rows, eps).view(x.shape), weight, bias


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if use_input_stats and running_mean is None:
        return _group_norm(x, x.shape[1], weight, bias, eps)
    normal = F.instance_norm(
        x, running_mean, running_var, None, None, use_input_stats, momentum, eps
    )
    return normal, weight, bias


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    arguments = dict(zip(("training", "momentum", "eps"), rest, strict=False)) | named
    if running_mean is None and len(x) == 1:  # a standardized weight [1, C, ...]
        return _group_norm(x, x.shape[1], weight, bias, arguments.get("eps", 1e-5))
    if running_mean is None or running_var is None or arguments.get("training", False):
        normal = F.batch_norm(x, running_mean, running_var, None, None, **arguments)
        return normal, weight, bias
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = (running_var + arguments.get("eps", 1e-5)).rsqrt()
    # Constants: unlike the library's function, this keeps no tensor for its gradient.
    normal = (x - running_mean.view(shape)) * scale.view(shape)
    return normal.to(x.dtype), weight, bias


def _rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor | None, None]:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = tuple(range(-len(normalized_shape), 0))
    eps = _default_eps(x.dtype) if eps is None else eps
    scale = (wide.square().mean(dims, keepdim=True) + eps).rsqrt()
    return (wide * scale).to(x.dtype), weight, None


@functools.cache
def _default_eps(dtype: torch.dtype) -> float:
    """Return what `F.rms_norm` adds by default; versions differ in half precision."""
    small = torch.full((1,), 1e-4, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        found = F.rms_norm(small, (1,)).item()

    def distance(eps: float) -> float:
        return abs(found - small.item() / math.sqrt(small.item() ** 2 + eps))

    return min((torch.finfo(of).eps for of in (dtype, torch.float32)), key=distance)


NORMALIZATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
}


def normalize(function: Callable[..., Any], args: Any, kwargs: Any, give: Give) -> Tensor:
    """Compute a normalization of torch in two steps.

    Args:
        function: One of `NORMALIZATIONS`.
        args: Its arguments by position.
        kwargs: Its arguments by name.
        give: Maps weight and bias to their replacements, which are broadcast.
    """
    if "input" in kwargs:
        args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
    normal, weight, bias = NORMALIZATIONS[function](*args, **kwargs)
    by_channel = NORMALIZATIONS[function] not in (_layer_norm, _rms_norm)

    def given(parameter: Tensor) -> Tensor:
        if by_channel:  # one entry per channel, the second dimension
            given = give(parameter, (len(normal), normal.shape[1]))
            return given.reshape(*given.shape, *(1,) * (normal.ndim - 2))
        return give(parameter, tuple(normal.shape))

    if weight is None:
        return normal if bias is None else normal + given(bias)
    if bias is None:
        return normal * given(weight)
    # Not `addcmul`: its gradient multiplies by 1, and keeps the product.
    return normal * given(weight).to(normal.dtype) + given(bias).to(normal.dtype)
