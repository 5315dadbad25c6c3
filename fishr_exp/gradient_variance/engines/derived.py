"""Tensors that are computed from parameters alone, and per-sample gradients through them.

A weight that a network computes from its parameters (weight normalization, a table of positions
that is indexed, a standardized kernel) is the same for all samples. Uses of it are recorded as
those of a parameter; the Jacobian of its computation then maps the per-sample gradients at it to
those at the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..terms.moments import gradients_of_terms
from ..terms.uses import Direct, Term, flatten


class DerivedTensors:
    """Knows parameters and buffers, and all tensors that are computed without other tensors.

    Args:
        selected: The identities of the selected parameters.
        constants: All parameters and buffers of the model.
        count: N. A new tensor with as many rows may be one of the samples, and is not known.
    """

    def __init__(self, selected: Iterable[int], constants: Iterable[Tensor], count: int) -> None:
        self._count = count
        self._selected = frozenset(selected)
        self._sources = {identity: frozenset([identity]) for identity in self._selected}
        self._kept = {id(tensor): tensor for tensor in constants}  # alive, so ids stay unique

    def contains(self, values: Iterable[Any]) -> bool:
        """Whether all tensors among `values` are computed from parameters alone."""
        return all(id(v) in self._kept for v in values if isinstance(v, Tensor))

    def sources(self, value: Any) -> frozenset[int]:
        """Identities of the selected parameters that a tensor is computed from."""
        return self._sources.get(id(value), frozenset())

    def add(self, arguments: Sequence[Any], result: Any) -> None:
        """Remember the tensors in the result of a function of known tensors."""
        sources = frozenset().union(*(self.sources(value) for value in arguments))
        is_new = not any(isinstance(value, Tensor) for value in arguments)
        for output in flatten((result,)):
            if isinstance(output, Tensor) and id(output) not in self._selected:
                if is_new and output.shape[:1] == (self._count,):
                    continue
                self._kept[id(output)] = output
                if sources and output.requires_grad:
                    self._sources[id(output)] = sources | self.sources(output)

    def remove(self, changed: Iterable[Any]) -> None:
        """Forget tensors into which a function has written something else."""
        for value in changed:
            for tensor in (value, value._base) if isinstance(value, Tensor) else ():
                if self._kept.pop(id(tensor), None) is not None:
                    self._sources.pop(id(tensor), None)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._sources.clear()

    def is_derived(self, value: Any) -> bool:
        """Whether a tensor is computed from selected parameters, and is none itself."""
        return id(value) in self._sources and id(value) not in self._selected


def terms_of_sources(
    tensor: Tensor,
    terms: Sequence[Term],
    sources: Mapping[str, nn.Parameter],
    create_graph: bool,
) -> dict[str, Direct]:
    """Per-sample gradients at the parameters, from those at a tensor computed from them.

    Args:
        tensor: Computed from `sources`, with its graph.
        terms: The per-sample gradients at `tensor`.
        sources: Parameters by name.
        create_graph: Whether the results are differentiable.
    """
    gradients = gradients_of_terms(terms, tensor.shape).to(tensor.dtype)  # [N, *shape]
    inputs = list(sources.values())
    options = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    # Not by vmap, which loses second derivatives of some functions.
    rows = [torch.autograd.grad(tensor, inputs, own, **options) for own in gradients]
    columns = zip(*rows, strict=True)
    return {name: Direct(torch.stack(own)) for name, own in zip(sources, columns, strict=True)}
