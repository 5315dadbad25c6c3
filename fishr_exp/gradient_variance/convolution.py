"""Rules of convolutions: a product of output gradients and unfolded inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .uses import Direct, MakeTerm, Outer, Use


def convolution(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Convolution over one to three dimensions, of any stride, padding, dilation and groups.

    dW[o] = sum_t dy[o, t] u[t], with u[t] the patch of the input under the kernel at t. Padding
    modes other than zeros are a padding of their own before the convolution.
    """
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = use.bind(*names)
    dims = weight.ndim - 2
    if x.ndim != weight.ndim or len(x) != count:
        return None
    unfold = partial(
        _factors,
        kernel=tuple(weight.shape[2:]),
        stride=_each(1 if stride is None else stride, dims),
        padding=0 if padding is None else padding,
        dilation=_each(1 if dilation is None else dilation, dims),
        groups=groups or 1,
    )
    x = use.samples_first(x, count)
    return [
        (weight, lambda delta: Outer(unfold, (use.samples_first(delta, count), x))),
        (bias, lambda delta: Direct(use.samples_first(delta, count).flatten(2).sum(2))),
    ]


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _factors(
    delta: Tensor,
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | int | Sequence[int],
    dilation: tuple[int, ...],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Output gradients [n, G, O/G, T] and unfolded inputs [n, G, C/G * kernel, T]."""
    left = delta.reshape(len(delta), groups, -1, delta[0, 0].numel())
    if isinstance(padding, str):
        sides = zip(dilation, kernel, strict=True)
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in sides]
        x = F.pad(x, [p for r in reversed(reach) for p in (r // 2, r - r // 2)])
        padding = 0
    padding = _each(padding, len(kernel))
    if len(kernel) == 1:  # as one row of an image
        x, kernel, stride = x.unsqueeze(2), (1, *kernel), (1, *stride)
        padding, dilation = (0, *padding), (1, *dilation)
    if len(kernel) == 2:
        patches = F.unfold(x, kernel, dilation, padding, stride)  # [n, C * kernel, T]
    else:
        patches = _unfold_volume(x, kernel, stride, padding, dilation)
    positions = left.shape[-1]  # a stride may leave patches over that no output has
    return left, patches.reshape(len(x), groups, -1, positions)


def _unfold_volume(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """`F.unfold` for [n, C, *volume]; torch has it for images only."""
    x = F.pad(x, [p for side in reversed(padding) for p in (side, side)])
    for dim, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, d * (k - 1) + 1, s)[..., ::d]  # appends the dimension of this side
    dims = len(kernel)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return x.permute(order).flatten(2 + dims).flatten(1, 1 + dims)  # [n, C * kernel, T]
