"""Our engine: one forward pass, one gradient at the outputs of all layers, then each its rule."""

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
"""By model: parameters that the log has named."""


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
        Logits [N, C], losses [N], and what `finish` makes of the moments, by parameter name; if
        it makes scalars of them, no moments are kept.

    Raises:
        UnsupportedError: If samples are coupled, the loss is not one per sample, or the covariance
            of a convolution is asked for.
    """
    count = len(inputs)
    recorder = Recorder(parameters.values(), count, allow_batch_statistics)
    with recorder:
        logits = model(inputs)
    losses = losses_of_samples(loss, logits, targets, count)
    plans, slow = _plan(recorder.uses, parameters, count)
    slow |= _used_unseen(plans, parameters, losses, slow)
    finished: dict[str, Tensor] = {}

    def finish_terms(name: str, terms: Sequence[Term]) -> None:
        def of(terms: Sequence[Term]) -> Tensor:
            shape = parameters[name].shape
            return finish(name, moments_of_terms(terms, shape, sizes, memory_limit, covariance))

        finished[name] = _scalar_of_terms(of, terms) if to_scalars else of(terms)

    with torch.autocast(inputs.device.type, enabled=False), torch.set_grad_enabled(create_graph):
        terms = _terms(plans, logits, losses, targets, loss, create_graph)
        slow |= {name for name, own in terms.items() if len({type(term) for term in own}) > 1}
        if not recorder.met_batch_statistics:  # with which no sample's gradient stands alone
            slow |= failing_the_check(model, plans, terms, parameters, losses, memory_limit)
        plans.clear()
        recorder.uses.clear()  # which hold the layers' results
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
    """A scalar of terms, with its gradient at what the terms are made of, and no other graph."""
    counts = [len(term.inputs) for term in terms]

    def of_inputs(inputs: Sequence[Tensor]) -> Tensor:
        given = iter(inputs)
        return of([t.of(list(islice(given, n))) for t, n in zip(terms, counts, strict=True)])

    return at_once(of_inputs, [tensor for term in terms for tensor in term.inputs])


def _report(model: nn.Module, names: set[str]) -> None:
    """Name parameters without a rule once for each model."""
    new = names - _reported.setdefault(model, set())
    if new:
        _reported[model] |= new
        _log.info("no rule holds for %s: exact by torch.func, and slow", ", ".join(sorted(new)))


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
