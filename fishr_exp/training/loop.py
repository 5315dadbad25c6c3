"""The one loop that trains every method.

    until early stopping ends it, or all steps are made:
        for every step of the epoch:
            set the learning rates, if there is a schedule
            make the optimizers from scratch, if the trainer wants it before this step
            one minibatch from each training domain -> batch -> objective(s) -> update(s)
            save, if it is time to; and stop, if a signal asks for it
        evaluate -> record -> observer -> what the caller does with both (write) -> save
"""  # fmt: skip

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fishr_exp.core import distributed
from fishr_exp.core.compiler import compiler_not_imported
from fishr_exp.core.contracts import Averaging, Batch, Minibatch, Model, Overrides, Trainer
from fishr_exp.data.minibatches import awaited
from fishr_exp.runs.records import Diagnostics, Evaluation, Scores
from fishr_exp.training.arguments import Grouping
from fishr_exp.training.checkpoint import Interval, random_state, restore_random_state
from fishr_exp.training.early_stopping import EarlyStopping, Verdict
from fishr_exp.training.grouping import check_grouping, divided
from fishr_exp.training.schedules import MakeSchedule, Schedule
from fishr_exp.training.signals import InterruptedEvaluationError, Signals
from fishr_exp.training.step import (
    Autocast,
    MakeOptimizer,
    Player,
    check_weights,
    make_players,
    optimizer_step,
)

log = logging.getLogger(__name__)
_MUCH_WAITING = 0.1  # of a step's time; below, more workers gain nothing to speak of
_ENOUGH = 3  # epochs; some players begin late
_FELT = 0.01  # seconds a step; below, workers cost more than they gain


@dataclass
class Training:
    """A training under way: all that a checkpoint holds."""

    model: Model
    trainer: Trainer
    make_optimizer: MakeOptimizer
    observer: EarlyStopping
    averaging: Averaging = field(default_factory=Averaging)
    step: int = 0  # updates made; also the position of every loader, see data/minibatches.py
    autocast: Autocast = contextlib.nullcontext
    make_schedule: MakeSchedule | None = None
    clip_norm: float | None = None
    after_step: Callable[[], None] | None = None  # for the profiler
    grouping: Grouping = field(default_factory=Grouping)
    # Of the steps since the last evaluation: what each logged, and the seconds that all took, and
    # those of them in which the batch was waited for.
    logged: dict[str, list[Tensor]] = field(default_factory=dict)
    seconds: float = 0.0
    waited: float = 0.0

    def __post_init__(self) -> None:
        self.players: dict[str, Player] = self._new_players({})
        check_grouping(self.grouping, [p.optimizer for p in self.players.values()], self.model)
        self.schedules = self._new_schedules()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def stop(self) -> bool:
        """Whether early stopping or the averaging scheme ends it."""
        return self.observer.stop or self.averaging.stop

    @property
    def learning_rate(self) -> float:
        """That of the first player's first parameters."""
        return next(iter(self.players.values())).optimizer.param_groups[0]["lr"]

    def reset_optimizers(self) -> None:
        """Make the optimizers from scratch where the trainer wants it before this step.

        Their schedules continue from where they are.
        """
        if (overrides := self.trainer.resets.get(self.step)) is None:
            return
        moved = [name for name, player in self.players.items() if player.has_moved]
        self.players = self._new_players(overrides)
        for name in moved:
            self.players[name].has_moved = True
        earlier, self.schedules = self.schedules, self._new_schedules()
        for name in earlier.keys() & self.schedules.keys():
            self.schedules[name].go_on_from(earlier[name])

    def _new_players(self, overrides: Overrides) -> dict[str, Player]:
        def divide(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return divided(groups, self.model, self.trainer, self.grouping)

        return make_players(self.trainer, self.model, self.make_optimizer, overrides, divide)

    def _new_schedules(self) -> dict[str, Schedule]:
        if self.make_schedule is None:
            return {}
        return {name: self.make_schedule(p.optimizer) for name, p in self.players.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on; every rank calls it."""
        with compiler_not_imported():
            optimizers = {name: p.optimizer.state_dict() for name, p in self.players.items()}
        schedules = {name: schedule.state_dict() for name, schedule in self.schedules.items()}
        return {
            "step": self.step,
            "logged": {name: torch.stack(values) for name, values in self.logged.items()},
            "seconds": self.seconds,
            "waited": self.waited,
            "model": self.model.state_dict(),
            "trainer": self.trainer.state_dict(),
            "optimizers": optimizers,
            **({"schedules": schedules} if schedules else {}),
            "moved": [name for name, player in self.players.items() if player.has_moved],
            "averaging": self.averaging.state_dict(),
            "observer": self.observer.state_dict(),
            "random": distributed.gathered(random_state(self.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken, also by an earlier version."""
        before_players = "optimizer" in state  # one optimizer, and no averaging
        self.step = state["step"]
        logged = {name: values.to(self.device) for name, values in state["logged"].items()}
        self.logged = {name: list(values.unbind()) for name, values in logged.items()}
        self.seconds = state["seconds"]
        self.waited = state.get("waited", 0.0)  # the oldest checkpoints have none
        self.model.load_state_dict(state["model"])
        self.trainer.load_state_dict(state["method" if before_players else "trainer"])
        optimizers = {"model": state["optimizer"]} if before_players else state["optimizers"]
        for name, player in self.players.items():
            with compiler_not_imported():
                player.optimizer.load_state_dict(optimizers[name])
            player.has_moved = before_players or name in state["moved"]
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        if not before_players:
            self.averaging.load_state_dict(state["averaging"])
        self.observer.load_state_dict(state["observer"])
        if distributed.rank() < len(state["random"]):
            restore_random_state(state["random"][distributed.rank()], self.device)


def fit(
    training: Training,
    loaders: Iterable[Iterable[Minibatch]],
    evaluate: Callable[[], tuple[Scores, Diagnostics | None]],
    on_evaluation: Callable[[Evaluation, Verdict], None],
    save: Callable[[], None],
    save_every: Interval,
    signals: Signals,
    *,
    total_steps: int,
    steps_per_epoch: int,
    title: str,
) -> None:
    """Train until the steps are over or the observer stops.

    Args:
        training: What is trained; it may be in the middle, after a resume.
        loaders: One a training domain, in a fixed order, each from the minibatch of the current
            step on.
        evaluate: Returns the scores of a record, and what was diagnosed, if anything was. It may
            raise `InterruptedEvaluationError`, when a signal waits.
        on_evaluation: Called after the observer with every record and its verdict.
        save: Writes a checkpoint: after every evaluation, when one is due, and before a stop.
        save_every: Says when one is due between two evaluations.
        signals: Those that ask to stop.
        total_steps: At most so many updates.
        steps_per_epoch: Updates between two evaluations; the last epoch may have fewer.
        title: What the progress bar calls the run.

    Raises:
        TrainingError: If the objective or the weights become NaN or infinite.
        Stopped: If a signal asked for it; the last step is saved.
    """
    model, trainer, observer = training.model, training.trainer, training.observer
    epochs = -(-total_steps // steps_per_epoch)
    model.train()
    trainer.train()

    def pause() -> None:
        """Save if it is time to or a signal waits, and handle that; all ranks do the same."""
        number, due = distributed.largest(signals.pending, save_every.due(training.step))
        if number or due:
            check_weights(model, trainer, training.step)  # before they could be saved as good
            save()
            save_every.restart()
        if number:
            signals.handle(number)

    read = [awaited(minibatches, signals.when_pending(pause)) for minibatches in loaders]
    batches = _batches(read, training.device)
    with (
        tqdm(
            total=total_steps,
            initial=training.step,
            desc=title,
            unit="step",
            disable=None if distributed.is_first() else True,  # None: no bar without a terminal
            leave=False,
            dynamic_ncols=True,
        ) as bar,
        logging_redirect_tqdm(),
    ):
        # What was logged and not evaluated is an epoch that a checkpoint was taken in.
        while (training.logged or training.step < total_steps) and not training.stop:
            done = -(-training.step // steps_per_epoch) if training.logged else 0
            epoch = done or training.step // steps_per_epoch + 1
            first = (epoch - 1) * steps_per_epoch
            end = min(epoch * steps_per_epoch, total_steps)
            while training.step < end:
                _step(training, batches)
                bar.update()
                pause()
            check_weights(model, trainer, training.step)
            bar.set_postfix_str("evaluating")
            try:
                scores, diagnostics = evaluate()
            except InterruptedEvaluationError:
                pause()
                continue  # the signal's handler wants us to continue
            evaluation = _end_epoch(training, epoch, training.step - first, scores, diagnostics)
            numbers = evaluation.numbers()
            training.averaging.after_evaluation(numbers)
            verdict = observer.observe(training.step, numbers)
            for schedule in training.schedules.values():
                schedule.after_evaluation(numbers)
            on_evaluation(evaluation, verdict)
            save()
            save_every.restart()
            if epoch == _ENOUGH:
                _warn_of_idle_players(training)
            bar.set_postfix_str("")
            best = verdict.improved and observer.keep == "best"
            log.info(_line(evaluation, epochs, total_steps, best, bool(training.schedules)))
    if observer.stop and training.step < total_steps:
        log.info(
            "stopped early: %s has not improved for %d evaluations",
            observer.monitor,
            observer.waited,
        )
    _warn_of_idle_players(training)


def _warn_of_idle_players(training: Training) -> None:
    for name, player in training.players.items():
        if not player.has_moved:
            log.warning("no objective has updated player %s of the trainer so far", name)


def _step(training: Training, batches: Iterator[Batch]) -> None:
    """Take one batch, and make one step with it."""
    started = time.perf_counter()
    for schedule in training.schedules.values():
        schedule.after_steps(training.step)
    training.reset_optimizers()
    asked = time.perf_counter()
    batch = next(batches)
    training.waited += time.perf_counter() - asked
    trainer, model = training.trainer, training.model
    logs = optimizer_step(
        trainer, model, training.players, batch, training.step, training.autocast,
        training.clip_norm,
    )  # fmt: skip
    training.step += 1
    training.averaging.after_step(model, training.step)
    training.seconds += time.perf_counter() - started
    if training.step == 1:
        training.observer.check_losses(logs)
    if training.after_step:
        training.after_step()
    for name, value in logs.items():  # without waiting for the device, which is busy with the step
        there = value.to(training.device, non_blocking=True)
        training.logged.setdefault(name, []).append(there)


def _end_epoch(
    training: Training, epoch: int, steps: int, scores: Scores, diagnostics: Diagnostics | None
) -> Evaluation:
    """Put together what an epoch of so many steps came to, and begin to count the next one."""
    evaluation = Evaluation(
        step=training.step,
        epoch=epoch,
        seconds_per_step=training.seconds / steps,
        seconds_waiting_per_step=training.waited / steps,
        learning_rate=training.learning_rate,
        losses={name: torch.stack(v).mean().item() for name, v in training.logged.items()},
        scores=scores,
        diagnostics=diagnostics,
    )
    training.logged, training.seconds, training.waited = {}, 0.0, 0.0
    return evaluation


def _batches(loaders: Iterable[Iterable[Minibatch]], device: torch.device) -> Iterator[Batch]:
    """Join one minibatch of each domain, step by step, on the device."""
    before: tuple[Minibatch, ...] = ()
    for minibatches in zip(*loaders, strict=True):
        # A domain taken whole comes as the same tensors every step: joined and moved once.
        if not before or any(
            new.x is not old.x for new, old in zip(minibatches, before, strict=True)
        ):
            batch = Batch.join([minibatch.to(device) for minibatch in minibatches])
            before = minibatches
        yield batch


def _line(
    evaluation: Evaluation, epochs: int, total_steps: int, best: bool, shows_rate: bool = False
) -> str:
    """One evaluation as a line for people."""
    width, steps = len(str(epochs)), len(str(total_steps))
    parts = [f"epoch {evaluation.epoch:>{width}}/{epochs}", f"step {evaluation.step:>{steps}}"]
    parts += [f"{name} {value:<9.4g}" for name, value in evaluation.losses.items()]
    parts += [f"lr {evaluation.learning_rate:<8.3g}"] if shows_rate else []
    for part in ("train", "validation"):
        mean = evaluation.scores.mean("accuracy", part)
        if mean is not None:
            parts.append(f"{part} {100 * mean:5.1f} %")
    seconds, waiting = evaluation.seconds_per_step, evaluation.seconds_waiting_per_step
    if evaluation.epoch > 1 and waiting > max(_MUCH_WAITING * seconds, _FELT):  # after the start
        parts.append(f"{100 * waiting / seconds:.0f} % of it waiting for data (num_workers)")
    return "  ".join(parts) + ("  (best)" if best else "")
