"""Uses of parameters in a forward pass, and the resulting per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .outer import Factors
from .single import Single


@dataclass(frozen=True)
class Use:
    """One call of a torch function with selected parameters, or tensors derived from them."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor  # later in-place operations may have changed its data
    edge: GradientEdge  # where the gradient at the output arrives, also after in-place changes
    positions_first: bool = False  # [T, N, ...] or [T * N, ...], as attention works inside
    guessed: bool = False  # whether the layout is a guess, which only the check can confirm
    guess: int | None = 0  # which of the possible layouts to guess; None: do not guess

    def bind(self, *names: str) -> list[Any]:
        """Return the arguments with these names, which are in the order of the signature.

        Those that were not given are None.
        """
        given = list(self.args) + [None] * len(names)
        return [self.kwargs.get(name, given[i]) for i, name in enumerate(names)]

    def values(self) -> Iterator[Any]:
        """Yield the arguments."""
        return flatten((*self.args, *self.kwargs.values()))

    def names(self, known: dict[int, str]) -> set[str]:
        """Return the names of the tensors among the arguments, given those by identity."""
        return {known[id(value)] for value in self.values() if id(value) in known}

    def laid_out(self, x: Tensor, count: int) -> Use | None:
        """Return this use with the layout of its argument `x` [..., K], guessed if not [N, ...].

        Samples come first, [N * T, ...], or positions, [T, N, ...] or [T * N, K]. None if neither
        fits.
        """
        if self.positions_first or len(x) == count:
            return self
        layouts = []  # whether positions are first
        if len(x) % count == 0:
            layouts += [False, True] if x.ndim == 2 else [False]
        if x.ndim > 2 and x.shape[1] == count:
            layouts.append(True)
        if self.guess is None or self.guess >= len(layouts):
            return None
        return replace(self, positions_first=layouts[self.guess], guessed=True)

    def samples_first(self, x: Tensor, count: int) -> Tensor:
        """Convert an argument or a gradient to the layout [N, ...], at least in float32.

        [N * T, ...] becomes [N, T, ...].
        """
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if self.positions_first and x.ndim > 2 and x.shape[1] == count:
            return x.transpose(0, 1)
        if self.positions_first:
            return x.reshape(-1, count, x.shape[-1]).transpose(0, 1)
        return x if len(x) == count else x.unflatten(0, (count, -1))


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
