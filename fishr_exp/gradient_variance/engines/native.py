"""The native engine: one forward pass, one gradient at all layers' outputs, one rule per layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..autograd.at_once import at_once, with_gradients
from ..errors import UnsupportedError
from ..losses import Loss, losses_of_samples
from ..terms.moments import Moments, moments_of_terms
from ..terms.small import Small, small
from ..terms.uses import Direct, Term
from .check import check, known_of
from .fallback import gradients_one_by_one
from .planning import Planner
from .recorder import Recorder

Finish = Callable[[str, Moments], Tensor]  # of a parameter's name and moments
WithGradient = Callable[[str, Tensor], tuple[Tensor, Tensor]]
"""Maps a parameter's name and variance to a scalar and its gradient at the variance."""

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
    with_gradient: WithGradient | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Statistics of the per-sample gradients of `parameters`; see `gradient_variance`.

    Returns:
        Logits [N, C], losses [N], and the results of `finish` by parameter name; if these are
        scalars, no moments are kept, and those of small layers come from `with_gradient`, if given.

    Raises:
        UnsupportedError: If samples are coupled, the loss is not per sample, or the covariance of a
            convolution is requested.
    """
    count = len(inputs)
    constants = [*model.parameters(), *model.buffers()]
    recorder = Recorder(parameters.values(), count, constants, allow_batch_statistics)
    with recorder:
        logits = model(inputs)
    losses = losses_of_samples(loss, logits, targets, count)
    planner = Planner(recorder, parameters)
    checked = not recorder.met_batch_statistics  # these couple the samples' gradients
    plans, slow = planner.plan(losses, checked)
    known = known_of(model, plans, count)
    if known.turned:
        plans, slow = planner.plan(losses, checked, known.turned)
    finished: dict[str, Tensor] = {}

    def finish_terms(name: str, terms: Sequence[Term]) -> None:
        def of(terms: Sequence[Term]) -> Tensor:
            shape = parameters[name].shape
            return finish(name, moments_of_terms(terms, shape, sizes, memory_limit, covariance))

        found = small(terms, sizes, memory_limit) if with_gradient else None
        if found and with_gradient:
            value, gradient = with_gradient(
                name, found.variance.reshape(-1, *parameters[name].shape)
            )
            finished[name] = _of_small(terms[0], found, value, gradient)
        else:
            finished[name] = _scalar_of_terms(of, terms) if to_scalars else of(terms)

    with torch.autocast(inputs.device.type, enabled=False), torch.set_grad_enabled(create_graph):
        of = (logits, losses, targets, loss, create_graph)
        terms = planner.terms(plans, *of)
        if checked:

            def turned(names: frozenset[str]) -> dict[str, list[Term]]:
                plans, slow = planner.plan(losses, checked, known.turned | names)
                found = planner.terms(plans, *of)
                return {name: found[name] for name in names - slow if name in found}

            check(known, plans, terms, turned, parameters, losses, memory_limit)
            slow |= known.failed
        slow |= {name for name, own in terms.items() if len({type(term) for term in own}) > 1}
        plans.clear()
        planner.clear()
        recorder.derived.clear()
        for name in reversed([name for name in parameters if name not in slow]):
            if name in terms:
                finish_terms(name, terms.pop(name))  # frees them
            else:
                zero = _zero_moments(parameters[name], len(sizes), covariance)
                finished[name] = finish(name, zero)
    if slow:
        if recorder.couples_samples:
            raise UnsupportedError(
                "BatchNorm in training mode, and a selected parameter without a rule: its "
                "per-sample gradients need each sample on its own, which has no batch statistics; "
                "put BatchNorm into evaluation mode, or choose a different scope"
            )
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


def _of_small(term: Term, found: Small, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of the variances of a term, with its gradient at the term's inputs."""
    if not torch.is_grad_enabled():
        return value
    gradients = found.pull_back(gradient.reshape(found.variance.shape))
    pairs = [(g, t) for g, t in zip(gradients, term.inputs, strict=True) if g is not None]
    return with_gradients(value, [g for g, _ in pairs], [t for _, t in pairs])


def _report(model: nn.Module, names: set[str]) -> None:
    """Log the parameters without a rule, once per model."""
    new = names - _reported.setdefault(model, set())
    if new:
        _reported[model] |= new
        _log.info(
            "no rule applies to %s: computed sample by sample, which is exact but slow",
            ", ".join(sorted(new)),
        )


def _zero_moments(parameter: Tensor, domains: int, covariance: bool) -> Moments:
    mean = parameter.new_zeros(domains, *parameter.shape)
    p = parameter.numel()
    return Moments(mean, parameter.new_zeros(domains, p, p) if covariance else mean)
