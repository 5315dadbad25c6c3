"""From the recorded uses of parameters to the terms of their per-sample gradients, by the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..losses import Loss
from ..rules.rules import RULES
from ..terms.uses import Plan, Term, Use
from .derived import terms_of_sources
from .recorder import Recorder


class Planner:
    """The uses of one forward pass, by parameter.

    A tensor that is computed from parameters has a key of its own beside the parameters' names.

    Args:
        recorder: After the forward pass.
        parameters: The selected parameters by name.
    """

    def __init__(self, recorder: Recorder, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters, self.count, self.uses = parameters, recorder.count, recorder.uses
        self._keys = {id(parameter): name for name, parameter in parameters.items()}
        self._derived: dict[str, tuple[Tensor, frozenset[str]]] = {}  # and its parameters' names
        for value in (value for use in self.uses for value in use.values()):
            if recorder.derived.is_derived(value) and id(value) not in self._keys:
                names = frozenset(self._keys[i] for i in recorder.derived.sources(value))
                key = f"#{len(self._derived)}"
                self._keys[id(value)], self._derived[key] = key, (value, names)

    def plan(
        self, losses: Tensor, guess: bool, turned: frozenset[str] = frozenset()
    ) -> tuple[list[Plan], set[str]]:
        """Find the rule for each use, and the parameters that have a use without one.

        Args:
            losses: [N].
            guess: Whether rules may guess layouts.
            turned: Names of parameters for which the second guess is taken.
        """
        plans: list[Plan] = []
        without: set[str] = set()
        for use in self.uses:
            if not guess or self._parameters_of(use) & turned:
                use = replace(use, guess=1 if guess else None)
            rule = RULES.get(use.function)
            found = (rule(use, self.count) if rule else None) or []
            ruled = [(self._keys[id(v)], make) for v, make in found if id(v) in self._keys]
            if ruled:
                plans.append((use, ruled))
            without |= use.names(self._keys) - {key for key, _ in ruled}
        slow = {name for key in without for name in self._names(key)}
        seen = {name for _, ruled in plans for key, _ in ruled for name in self._names(key)}
        return plans, slow | self._unrecorded(losses, seen | slow)

    def terms(
        self,
        plans: Sequence[Plan],
        logits: Tensor,
        losses: Tensor,
        targets: Tensor,
        loss: Loss,
        create_graph: bool,
    ) -> dict[str, list[Term]]:
        """Terms of each parameter's per-sample gradient, one per use."""
        terms = _terms_by_key(plans, logits, losses, targets, loss, create_graph)
        for key in [key for key in terms if key in self._derived]:
            tensor, names = self._derived[key]
            sources = {name: self.parameters[name] for name in self.parameters if name in names}
            found = terms_of_sources(tensor, terms.pop(key), sources, create_graph)
            for name, term in found.items():
                terms.setdefault(name, []).append(term)
        return terms

    def clear(self) -> None:
        """Free the uses, which hold the layers' outputs."""
        self.uses.clear()
        self._derived.clear()

    def _names(self, key: str) -> frozenset[str]:
        return self._derived[key][1] if key in self._derived else frozenset([key])

    def _parameters_of(self, use: Use) -> frozenset[str]:
        return frozenset(name for key in use.names(self._keys) for name in self._names(key))

    def _unrecorded(self, losses: Tensor, seen: set[str]) -> set[str]:
        """Parameters without a recorded use on which the losses nevertheless depend."""
        unrecorded = [name for name in self.parameters if name not in seen]
        if not unrecorded:
            return set()
        grads = torch.autograd.grad(
            losses.sum(),
            [self.parameters[name] for name in unrecorded],
            retain_graph=True,
            allow_unused=True,
        )
        return {name for name, grad in zip(unrecorded, grads, strict=True) if grad is not None}


def _terms_by_key(
    plans: Sequence[Plan],
    logits: Tensor,
    losses: Tensor,
    targets: Tensor,
    loss: Loss,
    create_graph: bool,
) -> dict[str, list[Term]]:
    uses = [use for use, _ in plans]
    terms: dict[str, list[Term]] = {}
    in_closed_form = getattr(loss, "gradient_at_logits", None)
    if in_closed_form and len(uses) == 1 and logits.grad_fn is uses[0].edge.node:
        deltas: Sequence[Tensor | None] = [in_closed_form(logits, targets)]
    elif uses:
        deltas = torch.autograd.grad(
            losses,
            [use.edge for use in uses],
            torch.ones_like(losses),
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )
    else:
        deltas = []
    for (use, ruled), delta in zip(plans, deltas, strict=True):
        if delta is None:
            continue
        if delta.shape != use.output.shape:
            delta = delta.reshape(use.output.shape)
        for key, make in ruled:
            terms.setdefault(key, []).append(make(delta))
    return terms
