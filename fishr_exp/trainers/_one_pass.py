"""Methods on one forward pass: a risk plus weighted penalties, which can be combined.

    objective = risk + Σ_k weight_k · penalty_k
"""  # fmt: skip

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fishr_exp.core.contracts import Batch, Model, Objective, Overrides, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.keeping import keeping_random_streams
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._features import FeaturesRead
from fishr_exp.trainers._terms import (
    check_choice,
    check_l2,
    check_penalty,
    domain_risks,
    in_full,
    with_l2,
)

RAMPS = ("none", "linear", "exponential")
_GROWTH = 1000.0  # of the slope of an exponential ramp, from its start to its end


@dataclass(frozen=True)
class Schedule:
    """How the weight of a penalty acts over the steps.

    Attributes:
        weight_before: Until `anneal_steps`.
        divides_by_weight: Whether the whole objective is divided by a weight above 1.
        resets_optimizer: Whether a new optimizer, without history, starts with gamma.
        ramp: How the weight gets from `weight_before`, which it has at `anneal_steps`, to gamma,
            which it has from `anneal_steps` + `ramp_steps` on. With t from 0 to 1 between them, it
            has made the part t of the way (`linear`) or (1000^t − 1) / 999 (`exponential`); `none`
            is gamma at once.
        ramp_steps: Steps that the ramp takes.
    """

    weight_before: float = 0.0
    divides_by_weight: bool = False
    resets_optimizer: bool = False
    ramp: str = "none"
    ramp_steps: int = 0

    def weight(self, gamma: float, anneal_steps: int, step: int) -> float:
        """The weight of the penalty after `step` updates; 0 at all steps for gamma 0."""
        if gamma == 0:
            return gamma
        if step < anneal_steps:
            return self.weight_before
        if self.ramp == "none" or step >= anneal_steps + self.ramp_steps:
            return gamma
        t = (step - anneal_steps) / self.ramp_steps
        part = t if self.ramp == "linear" else math.expm1(t * math.log(_GROWTH)) / (_GROWTH - 1)
        return self.weight_before + part * (gamma - self.weight_before)

    def resets(self, gamma: float, anneal_steps: int) -> Mapping[int, Overrides]:
        """The steps before which the optimizer is made from scratch."""
        return {anneal_steps: {}} if self.resets_optimizer and anneal_steps > 0 < gamma else {}

    def is_the_same_before(self, gamma: float) -> bool:
        """Whether the weight before `anneal_steps` is that of every other gamma above 0."""
        return gamma > 0 or self.weight_before == 0


class ForwardPass:
    """What one forward pass over a batch gives; computed when it is first asked for.

    Attributes:
        model: The model.
        batch: The batch.
        loss: Of each sample.
        step: Steps made so far.
        made: Whether the pass was made.
        kept: What a method keeps from `begin` to `parts`, by the method.
    """

    def __init__(self, model: Model, batch: Batch, loss: Loss, step: int) -> None:
        self.model, self.batch, self.loss, self.step = model, batch, loss, step
        self.made = False
        self.kept: dict[Trainer, Any] = {}
        self._features: Tensor | None = None
        self._logits: Tensor | None = None
        self._losses: Tensor | None = None
        self._risks: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """What the classifier reads, [N, F], no half precision; else what the featurizer gives."""
        self._make()
        if self._features is None:
            self._features = self.model.featurizer(self.batch.x)
        return in_full(self._features)

    @property
    def logits(self) -> Tensor:
        """[N, C], no half precision."""
        self._make()
        assert self._logits is not None
        return in_full(self._logits)

    @property
    def losses(self) -> Tensor:
        """[N]."""
        self._make()
        if self._losses is None:
            self._losses = self.loss(self.logits, self.batch.y)
        return self._losses

    def gradients_at_logits(self, *, create_graph: bool) -> Tensor:
        """Gradient of each loss at its logits, [N, C], no half precision; the graph is kept."""
        logits, losses = self._logits, self.losses
        if (full := self.logits) is not logits:  # at half precision, the gradient is half, too
            logits, losses = full, self.loss(full, self.batch.y)
        (found,) = torch.autograd.grad(
            losses.sum(), logits, create_graph=create_graph, retain_graph=True
        )
        return found

    @property
    def risks(self) -> Tensor:
        """Mean loss of each domain, over the samples of all processes: [D]."""
        if self._risks is None:
            self._risks = domain_risks(self.batch, self.losses)
        return self._risks

    def adopt(self, features: Tensor | None, logits: Tensor, losses: Tensor) -> None:
        """Take the results of a pass that somebody made, if there are none yet."""
        if not self.made:
            self._features, self._logits, self._losses, self.made = features, logits, losses, True

    def _make(self) -> None:
        if self.made:
            return
        with FeaturesRead(self.model) as read:
            self._logits = self.model(self.batch.x)
        self._features, self.made = read.features, True


class Part(NamedTuple):
    """A penalty at one step, with its weight."""

    value: Tensor | None  # scalar; None at a step without it
    weight: float
    name: str = "penalty"  # in the logs
    times: int = 1  # how much larger it is at the one of so many steps at which it acts
    divides: bool = False  # the whole objective, if the weight exceeds 1


def with_penalties(risk: Tensor, parts: Sequence[Part]) -> Tensor:
    """The risk with the penalties of all parts, divided as they say."""
    total, divisor = risk, 1.0
    for part in parts:
        if part.weight != 0 and part.value is not None:
            total = total + part.weight * part.times * part.value
        if part.divides:
            divisor = max(divisor, part.weight)
    return total / divisor if divisor > 1 else total


class OnePass(Trainer):
    """A method on one forward pass: a risk plus weighted penalties.

        objective = risk + l2 · Σ‖w‖² + Σ_k weight_k · penalty_k

    A subclass defines `risk`, or `parts`, or both. `trainer=composed` combines them.

    Args:
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Attributes:
        alone: Why it goes with no other method; empty if it does.

    Raises:
        ConfigError: If `l2` is negative.
    """

    alone: str = ""

    def __init__(self, l2: float = 0.0, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        check_l2(l2)
        self.l2 = l2

    def begin(self, forward: ForwardPass) -> None:
        """Make the forward pass in the method's own way, if it has one; called first."""

    def risk(self, forward: ForwardPass) -> Tensor:
        """Return the risk, a scalar with graph; by default the mean of the domains' risks."""
        return forward.risks.mean()

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """Return the penalties; called once per step, after `risk`."""
        del forward
        return ()

    def more_logs(self, forward: ForwardPass) -> dict[str, Tensor]:
        """Return what is logged besides risk, penalties and objective; called after them."""
        del forward
        return {}

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; `step` counts the steps made so far."""
        forward = ForwardPass(model, batch, self.loss, step)
        self.begin(forward)
        risk = self.risk(forward)
        with torch.autocast(batch.x.device.type, enabled=False):  # products of features in float32
            parts = self.parts(forward)
        total = with_penalties(with_l2(risk, self.l2, model), parts)
        logs = {"risk": forward.risks.mean() if forward.made else risk}
        logs |= {part.name: part.value for part in parts if part.value is not None}
        return Objective(total, {**logs, "objective": total, **self.more_logs(forward)})


class Penalty(OnePass):
    """The mean risk plus one weighted penalty.

        objective = (1/D) Σ_e R_e + gamma · penalty

    A subclass defines `penalty`, and is a method of two files. One whose public code acts otherwise
    before `anneal_steps`, or at it, has another `schedule`.

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        anneal_steps: Steps before gamma acts.
        ramp: How the weight grows from there to gamma: `none` (at once), `linear` or
            `exponential`, see `Schedule`.
        ramp_steps: Steps that this takes.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.
    """

    gamma: float
    schedule = Schedule()

    def __init__(
        self,
        gamma: float,
        anneal_steps: int = 0,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        check_penalty(gamma, anneal_steps, l2)
        self.gamma = gamma
        self.anneal_steps = anneal_steps
        self.follow(self.schedule, ramp, ramp_steps)

    def follow(self, schedule: Schedule, ramp: str, ramp_steps: int) -> None:
        """Take up a schedule, with a ramp.

        Raises:
            ConfigError: If there is no such ramp, or it takes no step.
        """
        check_choice("trainer.ramp", ramp, RAMPS)
        if ramp_steps < 0 or (ramp != "none") != (ramp_steps > 0):
            reason = f"does not go with trainer.ramp={ramp}"
            hint = "pass the number of updates that the ramp takes"
            if ramp == "none":
                hint = "pass trainer.ramp=linear or exponential, too, or trainer.ramp_steps=0"
            raise ConfigError("trainer.ramp_steps", ramp_steps, reason, hint)
        given = (schedule.weight_before, schedule.divides_by_weight, schedule.resets_optimizer)
        self.schedule = Schedule(*given, ramp, ramp_steps)
        self.resets = self.schedule.resets(self.gamma, self.anneal_steps)
        own = ("gamma", "ramp", "ramp_steps") if schedule.is_the_same_before(self.gamma) else ()
        self.acts_from = dict.fromkeys(own, self.anneal_steps)

    def weight(self, step: int) -> float:
        """The weight of the penalty after `step` updates."""
        return self.schedule.weight(self.gamma, self.anneal_steps, step)

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Return the penalty, a scalar with graph."""
        raise NotImplementedError

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The penalty, with its weight; at weight 0 its random numbers leave ERM's as they are."""
        divides, weight = self.schedule.divides_by_weight, self.weight(forward.step)
        forward.logits  # noqa: B018 - made here, if not before: its random numbers are the model's
        alone = keeping_random_streams(forward.model) if weight == 0 else contextlib.nullcontext()
        with alone:
            return [Part(self.penalty(forward), weight, divides=divides)]


# The conventions of the public codes that IRM and V-REx are written in.
CONVENTIONS = {
    "colored_mnist": Schedule(weight_before=1.0, divides_by_weight=True),
    "domainbed": Schedule(weight_before=1.0, resets_optimizer=True),
}


class Penalized(Penalty):
    """A penalty with the schedules of IRM's and V-REx's public codes.

    Args:
        gamma: Weight of the penalty, finite and >= 0.
        convention: Whose schedule: `domainbed` (the optimizer is made from scratch at
            `anneal_steps`) or `colored_mnist` (the objective is divided by a weight above 1).
        anneal_steps: Steps before gamma acts; until then the weight is 1.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        ramp: How the weight grows from 1 to gamma, see `Penalty`.
        ramp_steps: Steps that this takes.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.
    """

    def __init__(
        self,
        gamma: float,
        convention: Literal["colored_mnist", "domainbed"] = "domainbed",
        anneal_steps: int = 0,
        l2: float = 0.0,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(gamma, anneal_steps, "none", 0, l2, loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        self.convention: str = convention
        self.follow(CONVENTIONS[convention], ramp, ramp_steps)
