"""Terms of objectives that several methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance.terms.distributed import sum_over_ranks


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a name that is not among those allowed.

    Raises:
        ConfigError: If it is not.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(key, value, f"choose from {', '.join(allowed)}")


def check_penalty(gamma: float, anneal_steps: int, l2: float) -> None:
    """Refuse arguments outside their range.

    Raises:
        ConfigError: If one is.
    """
    check_weight("trainer.gamma", gamma, "0 is ERM")
    check_steps("trainer.anneal_steps", anneal_steps)
    check_l2(l2)


def check_weight(key: str, value: float, hint: str = "") -> None:
    """Refuse a weight, or a radius, that is not finite and >= 0.

    Raises:
        ConfigError: If it is not.
    """
    if not 0 <= value < math.inf:
        raise ConfigError(key, value, "must be finite and not negative", hint)


def check_steps(key: str, steps: int) -> None:
    """Refuse a negative number of steps.

    Raises:
        ConfigError: If it is negative.
    """
    if steps < 0:
        raise ConfigError(key, steps, "must be 0 or more")


def check_rate(key: str, lr: float | None) -> None:
    """Refuse a learning rate of a method's own with which nothing would be trained.

    Args:
        key: Its key.
        lr: The rate; None is the optimizer's.

    Raises:
        ConfigError: If it is not positive and finite.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise ConfigError(key, lr, "must be positive and finite, or null for the optimizer's")


def check_l2(l2: float) -> None:
    """Refuse a weight of the squared norm that is not finite and >= 0.

    Raises:
        ConfigError: If it is not.
    """
    if not 0 <= l2 < math.inf:
        raise ConfigError("trainer.l2", l2, "must be 0 or more, and finite")


def domain_means(by_domain: Sequence[Tensor]) -> Tensor:
    """Mean of each domain over the samples of all ranks: [D].

    Args:
        by_domain: D tensors [n], this rank's.
    """
    if not distributed.is_active():
        return torch.stack([values.mean() for values in by_domain])
    sums = torch.stack([values.sum() for values in by_domain])
    return sum_over_ranks(sums) / distributed.total(sums.new_tensor([len(v) for v in by_domain]))


def of_all_ranks(batch: Batch, values: Tensor) -> tuple[Tensor, ...]:
    """Split `values` ([N, ...]) into D tensors [n, ...] over the samples of all ranks.

    The order of the samples is that of a single process. The gradient is that of a sum over ranks:
    right once gradients are averaged over the ranks.
    """
    by_domain = batch.by_domain(values)
    if not distributed.is_active():
        return by_domain
    sizes = torch.tensor(distributed.gathered(batch.sizes))  # [ranks, D]
    firsts = sizes[: distributed.rank()].sum(0)
    padded = []
    for own, first, total in zip(by_domain, firsts.tolist(), sizes.sum(0).tolist(), strict=True):
        before = own.new_zeros(first, *own.shape[1:])
        after = own.new_zeros(total - first - len(own), *own.shape[1:])
        padded.append(torch.cat([before, own, after]))
    return tuple(sum_over_ranks(torch.cat(padded)).split(sizes.sum(0).tolist()))


def in_full(values: Tensor) -> Tensor:
    """Return float32 in place of half precision; float64 stays."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def sum_of_all(values: Tensor) -> Tensor:
    """Sum over the samples of all ranks, of this rank's values [N]."""
    return sum_over_ranks(values.sum()) if distributed.is_active() else values.sum()


def domain_risks(batch: Batch, losses: Tensor) -> Tensor:
    """Mean loss of each domain, R_e: [D].

    Args:
        batch: The batch that the losses belong to.
        losses: Per-sample losses, [N].
    """
    return domain_means(batch.by_domain(losses))


def mean_risk(batch: Batch, losses: Tensor) -> Tensor:
    """Mean over the domains of each domain's mean loss: (1/D) Σ_e R_e."""
    return domain_risks(batch, losses).mean()


def with_l2(risk: Tensor, l2: float, model: Model) -> Tensor:
    """The risk with l2 · Σ‖w‖² over all parameters of the model, biases included."""
    if l2 == 0:
        return risk
    return risk + l2 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
