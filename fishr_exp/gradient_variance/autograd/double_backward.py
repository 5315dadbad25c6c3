"""Replacements for torch functions whose gradient torch cannot differentiate again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .normalization import NORMALIZATIONS, normalize


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    del inplace  # only saves memory
    return F.relu6(x + 3) / 6


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        return F.scaled_dot_product_attention(*args, **kwargs)


TWICE_DIFFERENTIABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.scaled_dot_product_attention: _attention,
}


class TwiceDifferentiable(TorchFunctionMode):
    """While active, functions are replaced by ones whose gradient can be differentiated again.

    This includes normalizations: under `torch.func.vmap`, the second derivatives of torch's layer
    norm and instance norm are wrong.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in NORMALIZATIONS:
            return normalize(func, args, kwargs, lambda parameter, _: parameter)
        return TWICE_DIFFERENTIABLE.get(func, func)(*args, **kwargs)
