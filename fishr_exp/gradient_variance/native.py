"""Our engine: one forward pass, one gradient at the outputs of all layers, then each its rule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .fallback import gradients_one_by_one
from .losses import gradient_at_logits, per_sample_losses
from .moments import (
    Moments,
    gradient_of_first_sample,
    moments_of_gradients,
    moments_of_terms,
)
from .recorder import Recorder
from .rules import RULES
from .uses import MakeTerm, Term, Use

Loss = Callable[[Tensor, Tensor], Tensor]
Plan = tuple[Use, list[tuple[str, MakeTerm]]]  # the parameters' names, each with its term

_log = logging.getLogger(__name__)
_without_rule: WeakKeyDictionary[nn.Module, dict[Any, frozenset[str]]] = WeakKeyDictionary()
"""By model and by the shapes of its uses: parameters whose rules failed the check."""


def native_moments(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    sizes: tuple[int, ...],
    parameters: Mapping[str, nn.Parameter],
    loss: Loss,
    *,
    create_graph: bool,
    memory_limit: int,
    allow_batch_statistics: bool,
    covariance: bool,
) -> tuple[Tensor, Tensor, dict[str, Moments]]:
    """Moments of the per-sample gradients of `parameters`; see `gradient_variance`.

    Returns:
        Logits [N, C], losses [N], and the moments by parameter name.

    Raises:
        ValueError: If samples are coupled, or the covariance of a convolution is asked for.
    """
    count = len(inputs)
    recorder = Recorder(parameters.values(), count, allow_batch_statistics)
    with recorder:
        logits = model(inputs)
    losses = loss(logits, targets)
    plans, slow = _plan(recorder.uses, parameters, count)
    slow |= _used_unseen(plans, parameters, losses, slow)
    device = inputs.device.type
    with torch.autocast(device, enabled=False), torch.set_grad_enabled(create_graph):
        terms = _terms(plans, logits, losses, targets, loss, create_graph)
        slow |= {name for name, own in terms.items() if len({type(term) for term in own}) > 1}
        if not allow_batch_statistics:
            slow |= _failing_the_check(model, plans, terms, parameters, losses)
        moments = {}
        for name, parameter in parameters.items():
            if name in slow:
                continue
            if name in terms:
                own = moments_of_terms(
                    terms[name], parameter.shape, sizes, memory_limit, covariance
                )
            else:
                own = _zero_moments(parameter, len(sizes), covariance)
            moments[name] = own
    if slow:
        left = {name: parameters[name] for name in parameters if name in slow}
        gradients = gradients_one_by_one(model, inputs, targets, left, loss, losses, create_graph)
        moments |= {
            name: moments_of_gradients(g, sizes, covariance) for name, g in gradients.items()
        }
    return logits, losses, {name: moments[name] for name in parameters}


def _zero_moments(parameter: Tensor, domains: int, covariance: bool) -> Moments:
    mean = parameter.new_zeros(domains, *parameter.shape)
    p = parameter.numel()
    return Moments(mean, parameter.new_zeros(domains, p, p) if covariance else mean)


def _plan(
    uses: Iterable[Use], parameters: Mapping[str, nn.Parameter], count: int
) -> tuple[list[Plan], set[str]]:
    """Find the rule of each use, and the parameters that have a use without one."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    plans: list[Plan] = []
    slow: set[str] = set()
    for use in uses:
        rule = RULES.get(use.function)
        found = (rule(use, count) if rule else None) or []
        ruled = [(names[id(value)], make) for value, make in found if id(value) in names]
        if ruled:
            plans.append((use, ruled))
        slow |= use.names(names) - {name for name, _ in ruled}
    return plans, slow


def _used_unseen(
    plans: Iterable[Plan],
    parameters: Mapping[str, nn.Parameter],
    losses: Tensor,
    slow: set[str],
) -> set[str]:
    """Parameters without any use in sight that the losses depend on all the same."""
    seen = {name for _, ruled in plans for name, _ in ruled} | slow
    unseen = [name for name in parameters if name not in seen]
    if not unseen:
        return set()
    grads = torch.autograd.grad(
        losses.sum(), [parameters[name] for name in unseen], retain_graph=True, allow_unused=True
    )
    return {name for name, grad in zip(unseen, grads, strict=True) if grad is not None}


def _terms(
    plans: Sequence[Plan],
    logits: Tensor,
    losses: Tensor,
    targets: Tensor,
    loss: Loss,
    create_graph: bool,
) -> dict[str, list[Term]]:
    """Terms of each parameter, one a use."""
    uses = [use for use, _ in plans]
    terms: dict[str, list[Term]] = {}
    if loss is per_sample_losses and len(uses) == 1 and uses[0].output is logits:
        deltas: Sequence[Tensor | None] = [gradient_at_logits(logits, targets)]
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
        for name, make in ruled:
            if delta is not None:
                terms.setdefault(name, []).append(make(delta.reshape(use.output.shape)))
    return terms


def _failing_the_check(
    model: nn.Module,
    plans: Sequence[Plan],
    terms: Mapping[str, Sequence[Term]],
    parameters: Mapping[str, nn.Parameter],
    losses: Tensor,
) -> frozenset[str]:
    """Parameters whose rules give the first sample a wrong gradient.

    A rule takes the first dimension for the samples'. Where it is another one of the same size
    (windows, positions), nothing but the result shows it. Checked once for each model and shapes.
    """
    known = _without_rule.setdefault(model, {})
    key = (len(losses), *((use.function, *use.output.shape) for use, _ in plans))
    if key not in known:
        known[key] = _wrong(terms, parameters, losses)
        if known[key]:
            _log.info("no rule holds for %s: torch.func instead", ", ".join(sorted(known[key])))
    return known[key]


def _wrong(
    terms: Mapping[str, Sequence[Term]], parameters: Mapping[str, nn.Parameter], losses: Tensor
) -> frozenset[str]:
    names = list(terms)
    if not names:
        return frozenset()
    of_first = torch.zeros_like(losses)
    of_first[0] = 1
    expected = torch.autograd.grad(
        losses,
        [parameters[name] for name in names],
        of_first,
        retain_graph=True,
        materialize_grads=True,
    )
    largest = max(float(grad.norm()) for grad in expected)
    wrong = set()
    for name, grad in zip(names, expected, strict=True):
        with torch.no_grad():
            parts = [gradient_of_first_sample(term, grad.shape) for term in terms[name]]
            ours = torch.stack(parts).sum(0)
        # Loose, since half precision is; a wrong layout is wrong by all of it.
        if float((ours - grad).norm()) > 0.05 * max(float(grad.norm()), 1e-4 * largest):
            wrong.add(name)
    return frozenset(wrong)
