"""Schedules of the learning rate: any of `torch.optim.lr_scheduler`, one for each player."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fishr_exp.core.compiler import compiler_not_imported
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.arguments import Arguments, Timing
from fishr_exp.training.built import as_kind, build_part

log = logging.getLogger(__name__)

_OF_GROUPS = ("base_lrs", "min_lrs")  # in a scheduler's state: what follows from the optimizer
_TRIED = 3  # ticks


class Schedule:
    """The schedule of one optimizer.

    Update k of the run, counted from 0, is made with the rate after k ticks, or after as many
    ticks as there were evaluations. A step is one tick also where it is several updates of a
    player, or none.

    Args:
        scheduler: Of the optimizer, just made.
        timing: When it ticks, and on what.

    Attributes:
        ticks: So many were made.
    """

    def __init__(self, scheduler: LRScheduler, timing: Timing) -> None:
        self.scheduler = scheduler
        self.timing = timing
        self.ticks = 0
        for group in self.groups:
            group.setdefault("initial_lr", group["lr"])

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer."""
        return self.scheduler.optimizer.param_groups

    def after_steps(self, steps: int) -> None:
        """Tick as often as there were steps; before the next update."""
        while self.timing.per == "step" and self.ticks < steps:
            self._tick()

    def after_evaluation(self, numbers: Mapping[str, float]) -> None:
        """Tick after an evaluation; `numbers` holds what it gave, by name."""
        if self.timing.per == "evaluation":
            monitor = self.timing.monitor
            self._tick(*([] if monitor is None else [numbers[monitor]]))

    def go_on_from(self, earlier: Schedule) -> None:
        """Take over from the schedule of an optimizer that this one's replaces.

        It continues from where that was: the rate is the new optimizer's own, times the factor that
        the schedule had come to.
        """
        before, own = earlier.groups, self.scheduler.state_dict()
        kept = {key: own[key] for key in _OF_GROUPS if key in own}
        for number, group in enumerate(self.groups):
            old = before[min(number, len(before) - 1)]
            if old["initial_lr"]:
                group["lr"] = group["initial_lr"] * (old["lr"] / old["initial_lr"])
        rates = {"_last_lr": [group["lr"] for group in self.groups]}
        self.scheduler.load_state_dict({**earlier.scheduler.state_dict(), **kept, **rates})
        self.ticks = earlier.ticks

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, beside the state of the optimizer."""
        return {"ticks": self.ticks, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            ValueError: If it is not one of this schedule.
        """
        there = state["scheduler"]
        if not _alike(self.scheduler.state_dict(), there):
            raise ValueError("its state of the scheduler is of another one")
        if not isinstance(state["ticks"], int):
            raise ValueError("the ticks of its scheduler are no number")
        self.scheduler.load_state_dict(there)
        self.ticks = state["ticks"]

    def _tick(self, *value: float) -> None:
        # A player whose turn has not come made no update yet, which may be what is wanted.
        quiet = warnings.catch_warnings() if self.ticks == 0 else contextlib.nullcontext()
        with quiet, compiler_not_imported():
            if self.ticks == 0:  # PyTorch warns at the first tick only
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step(*value)  # type: ignore[arg-type]
        self.ticks += 1


MakeSchedule = Callable[[Optimizer], Schedule]


def schedule_of(
    arguments: Arguments, total_steps: int, steps_per_epoch: int
) -> MakeSchedule | None:
    """Return what makes the schedule of an optimizer; None if the run has none.

    Args:
        arguments: What is asked for.
        total_steps: Updates of the run, at most.
        steps_per_epoch: Updates between two evaluations.
    """
    if arguments.scheduler is None:
        return None
    timing = arguments.timing
    ticks = total_steps if timing.per == "step" else -(-total_steps // steps_per_epoch)
    _warn_of_late(arguments.config["scheduler"], ticks, timing)
    return lambda optimizer: _built(arguments, optimizer, ticks)


def _built(arguments: Arguments, optimizer: Optimizer, ticks: int) -> Schedule:
    """Build the schedule of an optimizer; refuse one that undoes the rates of its groups."""
    build = arguments.scheduler
    assert build is not None
    rates = [group["lr"] for group in optimizer.param_groups]

    def make() -> object:
        try:
            return build(optimizer=optimizer, total_steps=ticks)
        except (KeyError, TypeError) as error:  # of a value that only PyTorch looks at
            raise ValueError(f"cannot be built ({type(error).__name__}: {error})") from error

    with compiler_not_imported():
        built = build_part(make, "scheduler", arguments.config, ValueError)
    schedule = Schedule(as_kind(built, LRScheduler, "scheduler"), arguments.timing)
    own = [group["initial_lr"] for group in optimizer.param_groups]
    if any(not math.isclose(a * rates[0], b * own[0]) for a, b in zip(own, rates, strict=True)):
        raise ConfigError(
            "scheduler", type(built).__name__,
            "sets one learning rate for all parameters, and some have a factor of their own",
            "choose another schedule, or leave the factor out (optimizer.classifier_lr_factor=1)",
        )  # fmt: skip
    return schedule


def check_schedule(arguments: Arguments, optimizer: Optimizer) -> None:
    """Try a schedule for a few ticks, without data.

    Raises:
        ConfigError: If it cannot be built or used.
    """
    if arguments.scheduler is None:
        return
    schedule = _built(arguments, optimizer, arguments.total_steps or 10**9)
    timing = arguments.timing
    name = type(schedule.scheduler).__name__
    watches = "metrics" in inspect.signature(schedule.scheduler.step).parameters
    if watches and timing.per == "step":
        reason = f"{name} looks at what an evaluation gives"
        raise ConfigError("scheduler.per", "step", reason, "pass scheduler.per=evaluation")
    if watches and timing.monitor is None:
        hint = "pass scheduler.monitor=validation_loss"
        raise ConfigError("scheduler.monitor", "null", f"{name} must look at something", hint)
    if timing.monitor is not None and not watches:
        reason = f"{name} looks at no quantity"
        raise ConfigError("scheduler.monitor", timing.monitor, reason, "leave it out")
    try:
        for tick in range(1, _TRIED):
            schedule.after_steps(tick)
            schedule.after_evaluation({str(timing.monitor): 1.0})
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = f"cannot be used ({error})"
        raise ConfigError("scheduler", name, reason, "check its keys") from error


def check_monitored(
    arguments: Arguments, measured: Sequence[str], training_domains: Sequence[str]
) -> None:
    """Refuse a schedule that looks at what no evaluation gives, at a test domain, or upside down.

    Args:
        arguments: What is asked for.
        measured: What every evaluation gives.
        training_domains: The names of the training domains.

    Raises:
        ConfigError: If it does.
    """
    monitor = arguments.timing.monitor
    if arguments.scheduler is None or monitor is None:
        return
    means = [name for name in measured if "/" not in name]
    domain = monitor.partition("/")[2].rpartition("/")[0]
    if monitor not in measured or (domain and domain not in training_domains):
        held_out = domain in arguments.test_domains
        reason = "a test domain has no part in training" if held_out else "no evaluation gives it"
        hint = f"choose from {', '.join(means)}, or METRIC/DOMAIN/PART of a training domain"
        raise ConfigError("scheduler.monitor", monitor, reason, hint)
    mode = arguments.config["scheduler"].get("mode", "min")
    wanted = "min" if monitor.partition("/")[0].endswith("loss") else "max"
    if mode != wanted:
        reason = f"{monitor} is better the {'lower' if wanted == 'min' else 'higher'} it is"
        raise ConfigError("scheduler.mode", mode, reason, f"pass scheduler.mode={wanted}")


def cosine(optimizer: Optimizer, total_steps: int, final_factor: float = 0.0) -> LambdaLR:
    """Let the rate fall along half a cosine, to `final_factor` times its first value at the end.

        rate after t of T ticks = (f + (1 − f) (1 + cos(π t / T)) / 2) · first rate

    Args:
        optimizer: Whose rates it sets.
        total_steps: T, the ticks of the whole run.
        final_factor: f, >= 0.

    Raises:
        ConfigError: If `final_factor` is below 0.

    Source: Loshchilov and Hutter (ICLR 2017, arXiv:1608.03983), Equation 5, without restarts; the
    values of `CosineAnnealingLR`, each computed from t alone.
    """
    return warmup_cosine(optimizer, total_steps, 0, final_factor)


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_steps: int, final_factor: float = 0.0
) -> LambdaLR:
    """Let the rate grow linearly to its value in the first ticks, and then fall as in `cosine`.

    In the warm-up of W ticks, the rate after t ticks is (t + 1) / W times its value, so that no
    update is made with a rate of 0.

    Args:
        optimizer: Whose rates it sets.
        total_steps: T, the ticks of the whole run.
        warmup_steps: W, ticks of the warm-up, >= 0 and below T.
        final_factor: As of `cosine`.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Goyal et al. (2017, arXiv:1706.02677), Section 2.2, for the warm-up.
    """
    if not 0 <= final_factor < math.inf:
        raise ConfigError("scheduler.final_factor", final_factor, "must be 0 or more")
    if not 0 <= warmup_steps < total_steps:
        reason = f"must be 0 or more, and less than the {total_steps} of the whole run"
        raise ConfigError("scheduler.warmup_steps", warmup_steps, reason)

    def factor(tick: int) -> float:
        if tick < warmup_steps:
            return (tick + 1) / warmup_steps
        part = min((tick - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * part)) / 2

    return LambdaLR(optimizer, factor)


def _warn_of_late(node: Mapping[str, Any], ticks: int, timing: Timing) -> None:
    """Say if the rate would change for the first time after the last update."""
    for key in ("step_size", "milestones"):
        value = node.get(key) or ticks - 1
        if (min(value) if isinstance(value, list) else value) >= ticks:
            log.warning(
                "scheduler.%s=%s: the learning rate never changes in the %d %ss of this run; lower "
                "it, or raise epochs or total_steps",
                key, value, ticks, timing.per,
            )  # fmt: skip


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two states of schedulers have the same keys and kinds of values."""
    if isinstance(ours, Mapping):
        return (
            isinstance(theirs, Mapping)
            and ours.keys() == theirs.keys()
            and all(_alike(value, theirs[key]) for key, value in ours.items())
        )
    if isinstance(ours, list):
        same = isinstance(theirs, list) and len(ours) == len(theirs)
        return same and all(map(_alike, ours, theirs))
    numbers = (int, float, torch.Tensor)
    if isinstance(ours, numbers):
        return isinstance(theirs, numbers)
    return ours is None or isinstance(theirs, type(ours))
