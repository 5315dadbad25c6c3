"""The native engine: one forward pass, one gradient at all layers' outputs, one rule per layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..autograd.at_once import at_once
from ..losses import Loss, losses_of_samples
from ..rules.rules import RULES
from ..terms.moments import Moments, moments_of_terms
from ..terms.uses import Direct, Plan, Term, Use
from .check import failing_the_check
from .fallback import gradients_one_by_one
from .recorder import Recorder

Finish = Callable[[str, Moments], Tensor]  # of a parameter's name and moments

_log = logging.getLogger(__name__)
_reported: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""By model: parameters that were already logged."""


def native_statistics(
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
    finish: Finish,
    to_scalars: bool,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Statistics of the per-sample gradients of `parameters`; see `gradient_variance`.

    Returns:
        Logits [N, C], losses [N], and the results of `finish` by parameter name; if these are
        scalars, no moments are kept.

    Raises:
        UnsupportedError: If samples are coupled, the loss is not per sample, or the covariance of a
            convolution is requested.
    """
    count = len(inputs)
    recorder = Recorder(parameters.values(), count, allow_batch_statistics)
    with recorder:
        logits = model(inputs)
    losses = losses_of_samples(loss, logits, targets, count)
    plans, slow = _plan(recorder.uses, parameters, count)
    slow |= _used_unrecorded(plans, parameters, losses, slow)
    finished: dict[str, Tensor] = {}

    def finish_terms(name: str, terms: Sequence[Term]) -> None:
        def of(terms: Sequence[Term]) -> Tensor:
            shape = parameters[name].shape
            return finish(name, moments_of_terms(terms, shape, sizes, memory_limit, covariance))

        finished[name] = _scalar_of_terms(of, terms) if to_scalars else of(terms)

    with torch.autocast(inputs.device.type, enabled=False), torch.set_grad_enabled(create_graph):
        terms = _terms(plans, logits, losses, targets, loss, create_graph)
        slow |= {name for name, own in terms.items() if len({type(term) for term in own}) > 1}
        if not recorder.met_batch_statistics:  # these couple the samples' gradients
            slow |= failing_the_check(model, plans, terms, parameters, losses, memory_limit)
        plans.clear()
        recorder.uses.clear()  # they hold the layers' outputs
        for name in reversed([name for name in parameters if name not in slow]):
            if name in terms:
                finish_terms(name, terms.pop(name))  # frees them
            else:
                zero = _zero_moments(parameters[name], len(sizes), covariance)
                finished[name] = finish(name, zero)
    if slow:
        _report(model, slow)
        left = {name: parameters[name] for name in parameters if name in slow}
        gradients = gradients_one_by_one(model, inputs, targets, left, loss, losses, create_graph)
        with torch.set_grad_enabled(create_graph):
            for name, own in gradients.items():
                finish_terms(name, [Direct(own)])
    return logits, losses, {name: finished[name] for name in parameters}


def _scalar_of_terms(of: Callable[[Sequence[Term]], Tensor], terms: Sequence[Term]) -> Tensor:
    """A scalar function of terms, with its gradient at their inputs instead of its graph."""
    counts = [len(term.inputs) for term in terms]

    def of_inputs(inputs: Sequence[Tensor]) -> Tensor:
        given = iter(inputs)
        return of([t.of(list(islice(given, n))) for t, n in zip(terms, counts, strict=True)])

    return at_once(of_inputs, [tensor for term in terms for tensor in term.inputs])


def _report(model: nn.Module, names: set[str]) -> None:
    """Log the parameters without a rule, once per model."""
    new = names - _reported.setdefault(model, set())
    if new:
        _reported[model] |= new
        _log.info(
            "no rule applies to %s: computed by torch.func, which is exact but slow",
            ", ".join(sorted(new)),
        )


def _zero_moments(parameter: Tensor, domains: int, covariance: bool) -> Moments:
    mean = parameter.new_zeros(domains, *parameter.shape)
    p = parameter.numel()
    return Moments(mean, parameter.new_zeros(domains, p, p) if covariance else mean)


def _plan(
    uses: Iterable[Use], parameters: Mapping[str, nn.Parameter], count: int
) -> tuple[list[Plan], set[str]]:
    """Find the rule for each use, and the parameters that have a use without one."""
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


def _used_unrecorded(
    plans: Iterable[Plan],
    parameters: Mapping[str, nn.Parameter],
    losses: Tensor,
    slow: set[str],
) -> set[str]:
    """Parameters without a recorded use on which the losses nevertheless depend."""
    seen = {name for _, ruled in plans for name, _ in ruled} | slow
    unrecorded = [name for name in parameters if name not in seen]
    if not unrecorded:
        return set()
    grads = torch.autograd.grad(
        losses.sum(),
        [parameters[name] for name in unrecorded],
        retain_graph=True,
        allow_unused=True,
    )
    return {name for name, grad in zip(unrecorded, grads, strict=True) if grad is not None}


def _terms(
    plans: Sequence[Plan],
    logits: Tensor,
    losses: Tensor,
    targets: Tensor,
    loss: Loss,
    create_graph: bool,
) -> dict[str, list[Term]]:
    """Terms of each parameter, one per use."""
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
        for name, make in ruled:
            if delta is not None:
                terms.setdefault(name, []).append(make(delta.reshape(use.output.shape)))
    return terms
