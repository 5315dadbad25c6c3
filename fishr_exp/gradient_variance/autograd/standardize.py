"""Standardization of rows, twice differentiable by closed forms.

torch differentiates its normalization kernels a second time through a dozen temporary tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def standardize(x: Tensor, eps: float) -> Tensor:
    """Subtract each row's mean and divide by its standard deviation.

    y = r (x - mean(x)) with r = (var(x) + eps)^(-1/2).

    Args:
        x: [R, M].
        eps: Added to the variance.

    Returns:
        [R, M], at least in float32 under autocast, as torch's normalizations do.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y, _, _ = _Standardize.apply(wide, eps)
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


class _Standardize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return torch.native_layer_norm(x, x.shape[1:], None, None, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, ...]) -> None:
        y, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(inputs[0], y, mean, r)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        return _StandardizeBackward.apply(grad, *ctx.saved_tensors), None


class _StandardizeBackward(torch.autograd.Function):
    """dx = r (d - mean(d) - y mean(d y)), with d the gradient at y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        d: Tensor, x: Tensor, y: Tensor, mean: Tensor, r: Tensor
    ) -> Tensor:
        del y
        return _kernel(d, x, mean, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """With u the gradient at dx, a = mean(d), b = mean(d y), c = mean(u), e = mean(u y).

        At d: r (u - c - y e). At x, through y and r, and with q = mean(u d):
        -r^2 (e (d - a) + b (u - c) + y (q - a c - 3 b e)).
        """
        d, x, y, mean, r = ctx.saved_tensors
        at_d = _kernel(u, x, mean, r) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return at_d, None, None, None, None
        a, c = d.mean(1, keepdim=True), u.mean(1, keepdim=True)  # [R, 1]
        b, e, q = _mean_product(d, y), _mean_product(u, y), _mean_product(u, d)
        square = -r * r
        at_x = torch.addcmul(-square * (e * a + b * c), square * e, d)
        at_x = torch.addcmul(at_x, square * b, u)  # vmap has no rule for it in place
        at_x = torch.addcmul(at_x, square * (q - a * c - 3 * b * e), y)
        return at_d, at_x, None, None, None


def _kernel(d: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    mask = [True, False, False]
    shape = list(x.shape[1:])
    return torch.ops.aten.native_layer_norm_backward(
        d.contiguous(), x, shape, mean, r, None, None, mask
    )[0]


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """[R, M] and [R, M] to [R, 1]."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).squeeze(2) / a.shape[1]
