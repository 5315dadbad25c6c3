"""Records every use of the selected parameters in a forward pass.

A use is a call of a torch function that takes a selected parameter and returns a tensor with a
graph. At this level, a module called twice, a weight shared by two modules and a parameter passed
to a function directly are all the same, and later operations on an output (in-place activations,
residual additions, branches) do not matter: the gradient edge of the output is recorded
immediately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from .derived import DerivedTensors

ELEMENTWISE = frozenset(
    variant
    for name in ("add", "sub", "mul", "div", "truediv")
    for variant in (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
) | {"rsub", "true_divide", "multiply", "subtract", "divide", "addcmul", "expand", "expand_as"}
"""Names of functions whose parameters may be copied for each sample, see `_copy_bare`."""


def give_copies(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give each of shape[0] samples its own copy of `parameter`."""
    aligned = (1,) * (len(shape) - parameter.ndim) + tuple(parameter.shape)
    aligned = aligned[-len(shape) :]
    return parameter.reshape(aligned).expand(shape[0], *aligned[1:])


class Recorder(TorchFunctionMode):
    """While active, records the uses of `parameters` in the order of the calls.

    Args:
        parameters: The selected parameters.
        count: N, the number of samples in the forward pass.
        constants: All parameters and buffers of the model; they do not depend on the samples.
        allow_batch_statistics: Whether BatchNorm may be in training mode; `met_batch_statistics`
            is set if it was, between a use and the loss. `couples_samples` is set if it was
            anywhere.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        count: int,
        constants: Iterable[Tensor] = (),
        allow_batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.selected = {id(parameter) for parameter in parameters}
        self.derived = DerivedTensors(self.selected, constants, count)
        self.count = count
        self.allow_batch_statistics = allow_batch_statistics
        self.met_batch_statistics = self.couples_samples = False
        self.uses: list[Use] = []
        self._in_attention = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        values = list(flatten((*args, *kwargs.values())))
        of_parameters = self.derived.contains(values)
        if func is F.batch_norm and not of_parameters and uses_batch_statistics(args, kwargs):
            self.couples_samples = True
        if of_parameters and not self._is_given_to_samples(func, args):
            return self._derive(func, args, kwargs, values)
        if not torch.is_grad_enabled():  # inside a custom autograd function, for one
            result = func(*args, **kwargs)
            self._forget(func, args, result)
            return result
        if func is F.multi_head_attention_forward and self._can_open(args, kwargs):
            return self._attention(args, kwargs)
        used = self._uses(values)
        if used:
            args, kwargs = self._copy_bare(func, args, kwargs)
            values = list(flatten((*args, *kwargs.values())))
        if self.uses:  # only what is between a use and the loss is differentiated twice
            func = TWICE_DIFFERENTIABLE.get(func, func)
        if func is F.batch_norm:
            self._meet_batch_statistics(used, args, kwargs)
        if func in NORMALIZATIONS and (used or self.uses) and not self._in_attention:
            return normalize(func, args, kwargs, self._replacement)
        result = func(*args, **kwargs)
        if used and self._uses(values):
            for output in flatten((result,)):
                self._record(func, args, kwargs, output)
        self._forget(func, args, result)
        return result

    def _forget(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Note that the function may have written samples into its result."""
        self.derived.remove(args[:1] if func is Tensor.__setitem__ else flatten((result,)))

    def _uses(self, values: Iterable[Any]) -> bool:
        return any(id(v) in self.selected or self.derived.is_derived(v) for v in values)

    def _derive(self, func: Any, args: tuple[Any, ...], kwargs: Any, values: list[Any]) -> Any:
        """Run a function of nothing but parameters and buffers."""
        if func in NORMALIZATIONS:
            result = normalize(func, args, kwargs, lambda parameter, _: parameter)
        else:
            result = TWICE_DIFFERENTIABLE.get(func, func)(*args, **kwargs)
        self.derived.add(values, args[0] if func is Tensor.__setitem__ else result)
        return result

    def _is_given_to_samples(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether a parameter is expanded or repeated to as many rows as there are samples."""
        if func not in (Tensor.expand, Tensor.repeat) or not self._uses(args[:1]):
            return False
        shape = _shape_of_result(func, args)
        if not shape:
            return False
        bare = args[0].ndim < len(shape) or len(args[0]) == 1
        return bare and shape[0] % self.count == 0

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any, guessed: bool = False
    ) -> None:
        if isinstance(output, Tensor) and output.requires_grad:  # not a shape, not `.data`
            edge = get_gradient_edge(_root(output))
            self.uses.append(Use(func, args, kwargs, output, edge, self._in_attention, guessed))

    def _copy_bare(
        self, func: Any, args: tuple[Any, ...], kwargs: Any
    ) -> tuple[tuple[Any, ...], Any]:
        """Give each sample its own copy of a parameter that is broadcast over the samples.

        The gradient at the copies [N, ...] is then the per-sample gradient, whatever the function
        is. Possible where the parameter is broadcast over the dimension of the samples: the first,
        or, if positions come before the samples, the second.
        """
        if self._in_attention:
            return args, kwargs
        if func is F.scaled_dot_product_attention and len(args) > 1:
            scores = (*args[0].shape[:-1], args[1].shape[-2])  # to which the mask is added
            if self._uses([kwargs.get("attn_mask")]):
                kwargs = {**kwargs, "attn_mask": self._replacement(kwargs["attn_mask"], scores)}
            if self._uses(args[3:4]):
                args = (*args[:3], self._replacement(args[3], scores), *args[4:])
            return args, kwargs
        if func is Tensor.repeat and self._is_given_to_samples(func, args):
            times, shape = _sizes(args), _shape_of_result(func, args)
            given = self._replacement(args[0], (shape[0], *(1,) * (len(times) - 1)))
            return (given, 1, *times[1:]), kwargs
        if getattr(func, "__name__", "") in ELEMENTWISE and (shape := _shape_of_result(func, args)):
            args = tuple(self._replacement(a, shape) if self._uses([a]) else a for a in args)
        return args, kwargs

    def _replacement(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not self._uses([parameter]):
            return parameter
        own = (1,) * (len(shape) - parameter.ndim) + tuple(parameter.shape)
        if shape[0] % self.count == 0 and own[0] == 1:
            copies = give_copies(parameter, (self.count, *shape[1:]))  # [N, ...]
            given = copies
            if shape[0] != self.count:  # [N * T, ...]
                times = shape[0] // self.count
                given = copies.unsqueeze(1).expand(-1, times, *own[1:]).flatten(0, 1)
        elif len(shape) > 1 and shape[1] == self.count and own[:2] == (1, 1):  # [T, N, ...]
            copies = give_copies(parameter, shape[1:])
            given = copies.unsqueeze(0)
        else:
            self._record(self._replacement, (parameter,), {}, parameter)  # a use without a rule
            return parameter
        guessed = shape[0] != self.count
        self._record(give_copies, (parameter, shape), {}, copies, guessed)
        return given

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
    if func in (Tensor.expand, Tensor.repeat):
        sizes = _sizes(args)
        if not sizes:
            return ()
        own = (1,) * (len(sizes) - args[0].ndim) + tuple(args[0].shape)
        if func is Tensor.repeat:
            return tuple(s * o for s, o in zip(sizes, own, strict=True))
        return tuple(o if s == -1 else s for s, o in zip(sizes, own, strict=True))
    return _broadcast([tuple(arg.shape) for arg in args if isinstance(arg, Tensor)])


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that tensors are broadcast to; empty if they cannot be.

    `torch.broadcast_shapes` says the same, in ten times the time, and imports SymPy.
    """
    longest = max(map(len, shapes), default=0)
    result = []
    for sizes in zip(*((1,) * (longest - len(shape)) + shape for shape in shapes), strict=True):
        others = {size for size in sizes if size != 1} or {1}
        if len(others) > 1:
            return ()  # the function itself will report the error
        result.append(others.pop())
    return tuple(result)


def _sizes(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Arguments of `Tensor.expand` or `repeat`, after the tensor, given one by one or in a list."""
    given = args[1:]
    return tuple(given[0]) if given and isinstance(given[0], list | tuple) else given


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
