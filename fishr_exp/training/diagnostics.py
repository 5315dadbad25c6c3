"""What the domains' gradients and the penalty do, seen on one batch; it leaves no trace."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Model, Objective, Trainer
from fishr_exp.core.keeping import keeping_random_streams
from fishr_exp.gradient_variance import (
    Loss,
    UnsupportedError,
    gradient_variance,
    per_sample_losses,
)

_log = logging.getLogger(__name__)
# BatchNorm in training mode, which a method that matches the classifier may have, is no reason to
# refuse a look.
EVERYWHERE: Mapping[str, Any] = {"scope": "all", "batch_statistics": "constant"}


def diagnose(
    trainer: Trainer,
    model: Model,
    batch: Batch,
    domains: Sequence[str],
    step: int,
    loss: Loss = per_sample_losses,
    *,
    all_parameters: bool = False,
    refused: set[str] | None = None,
) -> dict[str, float | None]:
    """Look at a trainer and a model after `step` updates; both stay as they are.

    Args:
        trainer: Any; it needs `risk` and `penalty`, or several `penalty_NAME`, among its logs for
            what is about penalties.
        model: The model.
        batch: The same at every look, so that only the weights change.
        domains: Names of the batch's domains.
        step: Updates made so far.
        loss: Of each sample, of the gradient variances.
        all_parameters: Whether to look at the gradient variances over all parameters as well.
        refused: Which of the two, by suffix, an earlier look found undefined for the network. They
            are not tried again; what this look finds undefined is added, with a warning.

    Returns:
        `variance_norm/DOMAIN` and `variance_distance/DOMAIN/DOMAIN`: Euclidean norm of the
        variance of per-sample gradients, and of the difference of two, over the parameters that
        the method matches, or over the classifier; on request `variance_norm_all/...` and
        `variance_distance_all/...` over all parameters, where the batch statistics of BatchNorm
        count as constants. For a method with a penalty also
        `penalty_share`, the part that the penalty with its weight is of the objective, at the next
        step at which it may act; and `gradient_cosine`, between the gradients of risk and penalty
        with respect to all parameters (None where one is zero), whatever the weight. With several
        penalties, `penalty_share/NAME` and `gradient_cosine/NAME` of each, by their logs
        `penalty_NAME`.
    """
    with keeping_random_streams(model):
        model = copy.deepcopy(model)  # statistics of BatchNorm and gradients stay as they are
        refused = set() if refused is None else refused
        looks = {"": trainer.matched}
        if all_parameters:
            looks["_all"] = {**trainer.matched, **EVERYWHERE}
        found: dict[str, float | None] = {}
        for suffix, matched in looks.items():
            if suffix in refused:
                continue
            try:
                found |= _of_variances(model, batch, domains, loss, suffix, matched)
            except UnsupportedError as error:  # a look does not end a run
                refused.add(suffix)
                scope = matched.get("scope", "classifier")
                _log.warning("diagnostics: no gradient variances over %s: %s", scope, error)
        return found | _of_penalties(trainer, model, batch, step)


def _of_variances(
    model: Model,
    batch: Batch,
    domains: Sequence[str],
    loss: Loss,
    suffix: str,
    matched: Mapping[str, Any],
) -> dict[str, float | None]:
    found = gradient_variance(
        model,
        batch.x,
        batch.y,
        batch.sizes,
        loss=loss,
        create_graph=False,
        all_ranks=distributed.is_active(),
        **{"scope": "classifier", **matched},
    )
    by_domain = dict(zip(domains, zip(*found.variances.values(), strict=True), strict=True))
    values: dict[str, float | None] = {}
    for name, own in by_domain.items():
        values[f"variance_norm{suffix}/{name}"] = _norm(own)
    for a, b in itertools.combinations(domains, 2):
        gaps = (one - other for one, other in zip(by_domain[a], by_domain[b], strict=True))
        values[f"variance_distance{suffix}/{a}/{b}"] = _norm(gaps)
    return values


def _of_penalties(
    trainer: Trainer, model: Model, batch: Batch, step: int
) -> dict[str, float | None]:
    step += -step % trainer.penalty_interval
    objective = _objective(copy.deepcopy(trainer), model, batch, step)
    keys = [key for key in objective.logs if key == "penalty" or key.startswith("penalty_")]
    if not keys or "risk" not in objective.logs:
        return {}
    weighed = objective.logs
    if not all(weighed[key].requires_grad for key in keys):
        weighed = _objective(_at_weight_one(trainer), model, batch, step).logs
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_risk = _gradient(weighed["risk"], parameters)
    found: dict[str, float | None] = {}
    for key in keys:
        line = key.removeprefix("penalty").replace("_", "/", 1)
        found[f"penalty_share{line}"] = _share(objective.logs[key], objective.total)
        if key in weighed:  # a method may log something else at another weight
            found[f"gradient_cosine{line}"] = _cosine(of_risk, _gradient(weighed[key], parameters))
    return found


def _at_weight_one(trainer: Trainer) -> Trainer:
    """A copy with all its penalties in use; at weight 0 they may be measured as constants."""
    copied = copy.deepcopy(trainer)
    for term in copied.modules():
        if isinstance(term, Trainer) and term.gamma is not None:
            term.gamma, term.anneal_steps = 1.0, 0
    return copied


def _share(penalty: Tensor, objective: Tensor) -> float:
    """Return the part of the objective that a penalty with its weight is."""
    if not (penalty.requires_grad and objective.requires_grad):
        return 0.0
    (weight,) = torch.autograd.grad(objective, penalty, retain_graph=True, allow_unused=True)
    return 0.0 if weight is None else (weight * penalty / objective).item()


def _objective(trainer: Trainer, model: Model, batch: Batch, step: int) -> Objective:
    torch.manual_seed(0)  # the same dropout at every look
    given = trainer.objective(model, batch, step)
    return given if isinstance(given, Objective) else next(given)


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of `value` as one vector, the mean over the ranks; zero without graph."""
    if not value.requires_grad:
        return torch.zeros(1)
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    parts = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]
    return (
        distributed.total(torch.cat([part.flatten() for part in parts])) / distributed.world_size()
    )


def _cosine(a: Tensor, b: Tensor) -> float | None:
    if not (a.any() and b.any()):
        return None
    a, b = a / a.abs().max(), b / b.abs().max()  # a tiny gradient's square may vanish
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def _norm(parts: Iterable[Tensor]) -> float:
    return torch.stack([part.double().square().sum() for part in parts]).sum().sqrt().item()
