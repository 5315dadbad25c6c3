"""Uses of parameters in a forward pass, and the resulting per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .outer import Factors
from .single import Single


@dataclass(frozen=True)
class Use:
    """One call of a torch function with selected parameters."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor  # later in-place operations may have changed its data
    edge: GradientEdge  # where the gradient at the output arrives, also after in-place changes
    positions_first: bool = False  # [T, N, ...] or [T * N, ...], as attention works inside

    def bind(self, *names: str) -> list[Any]:
        """Return the arguments with these names, which are in the order of the signature.

        Those that were not given are None.
        """
        given = list(self.args) + [None] * len(names)
        return [self.kwargs.get(name, given[i]) for i, name in enumerate(names)]

    def names(self, known: dict[int, str]) -> set[str]:
        """Return the names of the parameters among the arguments, given those by identity."""
        values = flatten((*self.args, *self.kwargs.values()))
        return {known[id(value)] for value in values if id(value) in known}

    def samples_first(self, x: Tensor, count: int) -> Tensor:
        """Convert an argument or a gradient to the layout [N, ...], at least in float32."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if self.positions_first:
            return x.reshape(-1, count, x.shape[-1]).transpose(0, 1)
        return x


class Direct(NamedTuple):
    """A per-sample gradient that is small enough to be stored."""

    gradients: Tensor  # [N, *shape of the parameter]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that the gradient is computed from."""
        return (self.gradients,)

    def of(self, inputs: Sequence[Tensor]) -> Direct:
        """Return the same term with other inputs."""
        return Direct(*inputs)


class Outer(NamedTuple):
    """A per-sample gradient that is a product of two factors, and is never stored."""

    factors: Factors
    tensors: tuple[Tensor, ...]  # [N, ...] each

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that the gradient is computed from."""
        return self.tensors

    def of(self, inputs: Sequence[Tensor]) -> Outer:
        """Return the same term with other inputs."""
        return Outer(self.factors, tuple(inputs))


Term = Direct | Outer | Single
MakeTerm = Callable[[Tensor], Term]
"""Maps the gradient at the output of a use to a term."""

Rule = Callable[[Use, int], "list[tuple[Any, MakeTerm]] | None"]
"""Maps a use, and the number of samples N, to the arguments that have a rule, each with its term.

None if the rule does not apply to this call, for example because the first dimension is not N.
"""


Plan = tuple[Use, list[tuple[str, MakeTerm]]]
"""A use, and the names of its parameters that have a rule, each with the function for its term."""


def flatten(values: Any) -> Iterator[Any]:
    """Yield the values in nested lists and tuples."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flatten(value)
        else:
            yield value
