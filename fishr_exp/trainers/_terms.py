"""Terms of objectives that several methods share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fishr_exp import ranks
from fishr_exp.contracts import Batch, Model
from fishr_exp.errors import ConfigError
from fishr_exp.gradient_variance.distributed import sum_over_ranks


@dataclass(frozen=True)
class Schedule:
    """How a public code lets the weight of its penalty act over the steps."""

    weight_before: float = 0.0  # until `anneal_steps`
    divides_by_weight: bool = False  # the whole objective, where the weight exceeds 1
    resets_optimizer: bool = False  # when the weight becomes gamma

    def weight(self, gamma: float, anneal_steps: int, step: int) -> float:
        """The weight of the penalty after `step` updates; 0 at all steps for gamma 0."""
        return gamma if step >= anneal_steps or gamma == 0 else self.weight_before

    def reset_at(self, gamma: float, anneal_steps: int) -> int | None:
        """The step before which the optimizer is made anew; None for never."""
        return anneal_steps if self.resets_optimizer and anneal_steps > 0 and gamma > 0 else None

    def total(self, loss: Tensor, penalty: Tensor | None, weight: float, times: int = 1) -> Tensor:
        """The objective, from the loss, the penalty and the penalty's weight at this step.

        `times` enlarges a penalty that acts at one of so many steps; None: not at this one.
        """
        total = loss if weight == 0 or penalty is None else loss + weight * times * penalty
        return total / weight if self.divides_by_weight and weight > 1 else total


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
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ConfigError("trainer.gamma", gamma, "must be finite and not negative", "0 is ERM")
    if anneal_steps < 0:
        raise ConfigError("trainer.anneal_steps", anneal_steps, "must be 0 or more")
    check_l2(l2)


def check_l2(l2: float) -> None:
    """Refuse a negative weight of the squared norm.

    Raises:
        ConfigError: If it is negative or not a number.
    """
    if not l2 >= 0:
        raise ConfigError("trainer.l2", l2, "must be 0 or more")


def domain_means(by_domain: Sequence[Tensor]) -> Tensor:
    """Mean of each domain over the samples of all ranks: [D].

    Args:
        by_domain: D tensors [n], this rank's.
    """
    if not ranks.together():
        return torch.stack([values.mean() for values in by_domain])
    sums = torch.stack([values.sum() for values in by_domain])
    return sum_over_ranks(sums) / ranks.total(sums.new_tensor([len(v) for v in by_domain]))


def sum_of_all(values: Tensor) -> Tensor:
    """Sum over the samples of all ranks, of this rank's values [N]."""
    return sum_over_ranks(values.sum()) if ranks.together() else values.sum()


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


@contextlib.contextmanager
def leaving_no_trace(model: Model) -> Iterator[None]:
    """Undo what forward passes in the block do to the random streams and the model's buffers."""
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    for buffer, before in buffers:
        buffer.copy_(before)
