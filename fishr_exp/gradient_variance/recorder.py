"""Watches a forward pass for every use of the selected parameters.

A use is a torch function that takes a selected parameter and returns a tensor with a graph. Seen
at this level, a module called twice, a weight that two modules share and a parameter given to a
function by hand are all the same, and nothing a module does to a result later (in-place
activations, residual additions, branches) matters: the gradient edge of the result is taken at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass
class Use:
    """One call of a torch function with selected parameters."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor  # as returned; later in-place code may have changed its data
    edge: GradientEdge  # where the gradient at the output, as returned, arrives


class Recorder(TorchFunctionMode):
    """While active, records the uses of `parameters` in the order of the calls.

    Args:
        parameters: The selected parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.uses: list[Use] = []

    def name_of(self, value: object) -> str | None:
        """Return the name of `value` if it is a selected parameter."""
        return self.names.get(id(value))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(id(value) in self.names for value in _flatten((*args, *kwargs.values()))):
            for output in _flatten((result,)):
                if isinstance(output, Tensor) and output.requires_grad:
                    edge = get_gradient_edge(output)
                    self.uses.append(Use(func, args, kwargs, output, edge))
        return result


def _flatten(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value
