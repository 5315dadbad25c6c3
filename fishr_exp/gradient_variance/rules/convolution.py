"""Rules for convolutions, including transposed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..terms.single import Single
from ..terms.uses import Direct, MakeTerm, Outer, Use

MANY_POSITIONS = 32
"""From this many positions on, the library's kernels are faster on a CPU than a matrix product."""

_backward = torch.ops.aten.convolution_backward


@dataclass(frozen=True)
class _Settings:
    """Settings of one call, each with one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def __iter__(self) -> Any:
        return iter(
            (
                self.stride,
                self.padding,
                self.dilation,
                self.transposed,
                self.output_padding,
                self.groups,
            )
        )


def convolution(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Convolution over one to three dimensions, of any stride, padding, dilation and groups.

    Padding modes other than zeros are separate padding operations before the convolution.
    """
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = use.bind(*names)
    dims = weight.ndim - 2
    laid_out = _laid_out(use, x, weight, count)
    if laid_out is None:
        return None
    dilation = _each(dilation, 1, dims)
    if isinstance(padding, str):
        x, padding = _padded(x, padding, weight.shape[2:], dilation), 0
    settings = _Settings(
        _each(stride, 1, dims), _each(padding, 0, dims), dilation, False, (0,) * dims, groups or 1
    )
    return _terms(laid_out, count, x, weight, bias, settings)


def transposed_convolution(use: Use, count: int) -> list[tuple[Any, MakeTerm]] | None:
    """Transposed convolution over one to three dimensions."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    x, weight, bias, stride, padding, output_padding, groups, dilation = use.bind(*names)
    dims = weight.ndim - 2
    laid_out = _laid_out(use, x, weight, count)
    if laid_out is None:
        return None
    settings = _Settings(
        _each(stride, 1, dims),
        _each(padding, 0, dims),
        _each(dilation, 1, dims),
        True,
        _each(output_padding, 0, dims),
        groups or 1,
    )
    return _terms(laid_out, count, x, weight, bias, settings)


def _laid_out(use: Use, x: Tensor, weight: Tensor, count: int) -> Use | None:
    """The layout of the input's images, [N, C, ...] or [N * T, C, ...]."""
    laid_out = use.laid_out(x, count) if x.ndim == weight.ndim else None
    return None if laid_out is None or laid_out.positions_first else laid_out


def _terms(
    use: Use, count: int, x: Tensor, weight: Tensor, bias: Any, settings: _Settings
) -> list[tuple[Any, MakeTerm]]:
    x = use.samples_first(x, count)
    like = weight.detach().to(x.dtype)

    def of_weight(delta: Tensor) -> Single | Outer:
        delta = use.samples_first(delta, count)
        large = delta[0, 0].numel() >= MANY_POSITIONS and x.device.type == "cpu"
        if large or settings.transposed or weight.ndim != 4 or x.ndim != 4:
            return _by_kernels(delta, x, like, settings)
        factors = partial(_factors, kernel=tuple(weight.shape[2:]), settings=settings)
        return Outer(factors, (delta, x))

    def of_bias(delta: Tensor) -> Direct:
        channels = delta.shape[1]
        parts = use.samples_first(delta, count).reshape(count, -1, channels, delta[0, 0].numel())
        return Direct(parts.sum((1, 3)))

    return [(weight, of_weight), (bias, of_bias)]


def _by_kernels(delta: Tensor, x: Tensor, like: Tensor, settings: _Settings) -> Single:
    """One sample at a time, by the kernels that differentiate a convolution.

    The gradient at the weight is linear in delta and in x; its backward pass is a convolution of x,
    and the input gradient of a convolution, both with the incoming gradient as the weight. A sample
    may hold several images, [1, T, ...].
    """
    dims = like.ndim

    def images(tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == dims else tensor.flatten(0, 1)

    def gradient(delta: Tensor, x: Tensor) -> Tensor:
        return _backward(images(delta), images(x), like, None, *settings, (False, True, False))[1]

    def pull_back(
        grad: Tensor, delta: Tensor, x: Tensor, at_x: bool
    ) -> tuple[Tensor, Tensor | None]:
        at_delta = torch.convolution(images(x), grad, None, *settings).view_as(delta)
        if not at_x:
            return at_delta, None
        mask = (True, False, False)
        at_input = _backward(images(delta), images(x), grad, None, *settings, mask)[0]
        return at_delta, at_input.view_as(x)

    return Single(delta, x, gradient, pull_back)


def _factors(
    delta: Tensor, x: Tensor, *, kernel: tuple[int, ...], settings: _Settings
) -> tuple[Tensor, Tensor]:
    """Output gradients [n, G, T, O/G] and patches of an image [n, G, T, C/G * kernel].

    dW[o] = sum_t dy[o, t] u[t], with u[t] the patch of the input under the kernel at t.
    """
    groups = settings.groups
    patches = F.unfold(x, kernel, settings.dilation, settings.padding, settings.stride)
    patches = patches.unflatten(1, (groups, -1)).transpose(2, 3).contiguous()
    left = delta.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
    return left, patches


def _each(value: int | Sequence[int] | None, default: int, dims: int) -> tuple[int, ...]:
    """A number for each dimension."""
    value = default if value is None else value
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padded(x: Tensor, padding: str, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Pad as `padding="same"` or `"valid"` does; an odd total adds one more at the end."""
    if padding == "valid":
        return x
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return F.pad(x, [p for r in reversed(reach) for p in (r // 2, r - r // 2)])
