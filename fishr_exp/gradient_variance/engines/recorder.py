"""Records every use of the selected parameters in a forward pass.

A use is a call of a torch function that takes a selected parameter and returns a tensor with a
graph. At this level, a module called twice, a weight shared by two modules and a parameter passed
to a function directly are all the same, and later operations on an output (in-place activations,
residual additions, branches) do not matter: the gradient edge of the output is recorded
immediately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..autograd.double_backward import TWICE_DIFFERENTIABLE
from ..autograd.normalization import NORMALIZATIONS, normalize, uses_batch_statistics
from ..errors import UnsupportedError
from ..terms.uses import Use, flatten

ELEMENTWISE = frozenset(
    variant
    for name in ("add", "sub", "mul", "div", "truediv")
    for variant in (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
) | {"rsub", "true_divide", "multiply", "subtract", "divide", "expand", "expand_as"}
"""Names of functions whose parameters may be copied for each sample, see `_copy_bare`."""


def give_copies(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give each of shape[0] samples its own copy of `parameter`."""
    aligned = (1,) * (len(shape) - parameter.ndim) + tuple(parameter.shape)
    return parameter.reshape(aligned).expand(shape[0], *aligned[1:])


class Recorder(TorchFunctionMode):
    """While active, records the uses of `parameters` in the order of the calls.

    Args:
        parameters: The selected parameters.
        count: N, the number of samples in the forward pass.
        allow_batch_statistics: Whether BatchNorm may be in training mode; `met_batch_statistics`
            is set if it was, between a use and the loss.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], count: int, allow_batch_statistics: bool = False
    ) -> None:
        super().__init__()
        self.selected = {id(parameter) for parameter in parameters}
        self.count = count
        self.allow_batch_statistics = allow_batch_statistics
        self.met_batch_statistics = False
        self.uses: list[Use] = []
        self._in_attention = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # inside a custom autograd function, for one
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward and self._can_open(args, kwargs):
            return self._attention(args, kwargs)
        used = any(id(value) in self.selected for value in flatten((*args, *kwargs.values())))
        if self.uses:  # only what is between a use and the loss is differentiated twice
            func = TWICE_DIFFERENTIABLE.get(func, func)
        if func is F.batch_norm:
            self._meet_batch_statistics(used, args, kwargs)
        if func in NORMALIZATIONS and (used or self.uses) and not self._in_attention:
            return normalize(func, args, kwargs, self._replacement)
        if not used:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in ELEMENTWISE:
            args = self._copy_bare(func, args)
        result = func(*args, **kwargs)
        if any(id(value) in self.selected for value in flatten((*args, *kwargs.values()))):
            for output in flatten((result,)):
                self._record(func, args, kwargs, output)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:  # not a shape, not `.data`
            edge = get_gradient_edge(_root(output))
            self.uses.append(Use(func, args, kwargs, output, edge, self._in_attention))

    def _copy_bare(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give each sample its own copy of a parameter that is broadcast over the samples.

        The gradient at the copies [N, ...] is then the per-sample gradient, whatever the function
        is. Possible where the result's first dimension is N and the parameter's is 1 or absent.
        """
        shape = _shape_of_result(func, args)
        if self._in_attention or not shape or shape[0] != self.count:
            return args
        return tuple(self._replacement(a, shape) if id(a) in self.selected else a for a in args)

    def _replacement(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        if id(parameter) not in self.selected:
            return parameter
        if shape[0] != self.count or (parameter.ndim == len(shape) and len(parameter) != 1):
            self._record(self._replacement, (parameter,), {}, parameter)  # a use without a rule
            return parameter
        copies = give_copies(parameter, shape)
        self._record(give_copies, (parameter, shape), {}, copies)
        return copies

    def _can_open(self, args: tuple[Any, ...], kwargs: Any) -> bool:
        query = args[0] if args else kwargs["query"]
        return query.ndim == 3 and query.shape[1] == self.count and not self._in_attention

    def _attention(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run attention and record its projections; its positions come before its samples."""
        self._in_attention = True
        try:
            with self:
                return _open_attention(*args, **kwargs)
        finally:
            self._in_attention = False

    def _meet_batch_statistics(self, used: bool, args: tuple[Any, ...], kwargs: Any) -> None:
        if not uses_batch_statistics(args, kwargs) or not (used or self.uses):
            return
        self.met_batch_statistics = True
        if not self.allow_batch_statistics:
            raise UnsupportedError(
                "BatchNorm in training mode between the selected parameters and the loss: its "
                "batch statistics couple the samples, so that none has a gradient of its own; put "
                "it into evaluation mode, choose a scope after it, or pass "
                "batch_statistics=constant, which treats the batch's statistics as constants"
            )


def _root(output: Tensor) -> Tensor:
    """Return the tensor whose gradient edge survives an in-place change of `output`.

    An in-place change of a view goes through its base, not through the view's own edge.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def _shape_of_result(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Shape of an element-wise function's result; empty if it has none."""
    if func is Tensor.expand:
        sizes = args[1] if isinstance(args[1], list | tuple) else args[1:]
        own = (1,) * (len(sizes) - args[0].ndim) + tuple(args[0].shape)
        return tuple(o if s == -1 else s for s, o in zip(sizes, own, strict=True))
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    try:
        return tuple(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:
        return ()  # the function itself will report the error


def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function of `torch.nn.functional` such that modes see the functions that it calls.

    A mode sees the original only as a whole.
    """
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_open_attention = _opened(F.multi_head_attention_forward)
