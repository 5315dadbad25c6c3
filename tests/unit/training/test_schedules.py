"""Schedules of the learning rate: their values, resets, players, and what is refused."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.training.arguments import Timing
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.loop import Training
from fishr_exp.training.schedules import Schedule, cosine, warmup_cosine
from fishr_exp.training.step import optimizer_step

from .test_step import Own, apart, batch, both, model

STEPS = 8


def sgd(lr: float = 0.1, groups: int = 1) -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(groups)]
    return torch.optim.SGD([{"params": [w], "lr": lr * (i + 1)} for i, w in enumerate(weights)])


def rates(schedule: Schedule, steps: int = STEPS) -> list[float]:
    found = []
    for step in range(steps):
        schedule.after_steps(step)
        found.append(schedule.groups[0]["lr"])
    return found


def training(make, trainer=None, timing=None, optimizer=None) -> Training:
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    return Training(
        model(),
        trainer or Erm(),
        optimizer or functools.partial(torch.optim.Adam, lr=0.1),
        observer,
        make_schedule=lambda optimizer: Schedule(make(optimizer), timing or Timing()),
    )


def advance(of: Training, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        for schedule in of.schedules.values():
            schedule.after_steps(of.step)
        of.reset_optimizers()
        optimizer_step(of.trainer, of.model, of.players, batch(), of.step)
        of.step += 1
        found.append(of.learning_rate)
    return found


def test_a_cosine_has_the_values_of_pytorchs() -> None:
    ours = rates(Schedule(cosine(sgd(), STEPS, 0.25), Timing()))
    theirs = rates(Schedule(CosineAnnealingLR(sgd(), STEPS, 0.025), Timing()))
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert ours[0] == 0.1
    assert ours == sorted(ours, reverse=True)


def test_a_warm_up_grows_from_above_zero_to_the_rate_and_then_falls() -> None:
    found = rates(Schedule(warmup_cosine(sgd(), STEPS, 4), Timing()))
    assert found[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert found[4:] == pytest.approx(rates(Schedule(cosine(sgd(), 4), Timing()), 4))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cosine(sgd(), 5, -0.1), "scheduler.final_factor=-0.1: must be 0 or more"),
        (lambda: warmup_cosine(sgd(), 5, 5), "scheduler.warmup_steps=5: must be 0 or more, and le"),
    ],
)
def test_values_out_of_range(make, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_each_player_has_its_own_and_a_step_is_one_tick_for_all() -> None:
    """Also for a player that made several updates in it, or none yet, of which nothing is said."""
    turns = ["model", "model", "own"]

    def in_turn(trainer, network, batch, step):
        for _ in range(2 if step == 0 else 1):
            yield both(trainer, network, batch, step)._replace(player=turns[step])

    found = training(lambda o: StepLR(o, 1, 0.5), Own(in_turn, apart))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(found, 3)
    assert {name: s.groups[0]["lr"] for name, s in found.schedules.items()} == {
        "model": 0.025, "own": 0.025,
    }  # fmt: skip


def test_a_factor_of_a_group_stays_a_factor() -> None:
    def groups(trainer, network):
        first = {"params": network.featurizer.parameters(), "lr_factor": 0.5}
        rest = {"params": [*network.classifier.parameters(), *trainer.parameters()]}
        return {"model": [first, rest]}

    found = training(lambda o: StepLR(o, 1, 0.5), Own(both, groups))
    advance(found, 3)
    first, rest = found.players["model"].optimizer.param_groups
    assert (first["lr"], rest["lr"]) == (0.0125, 0.025)


def test_per_evaluation_it_does_not_count_steps() -> None:
    found = training(lambda o: StepLR(o, 1, 0.5), timing=Timing(per="evaluation"))
    assert advance(found, 3) == [0.1] * 3
    found.schedules["model"].after_evaluation({})
    assert advance(found, 2) == [0.05] * 2


def test_a_plateau_looks_at_the_monitored_quantity() -> None:
    timing = Timing(per="evaluation", monitor="validation_loss")
    found = training(lambda o: ReduceLROnPlateau(o, patience=1), timing=timing)
    schedule, seen = found.schedules["model"], []
    for loss in (1.0, 0.5, 0.6, 0.5, 0.4):
        schedule.after_evaluation({"validation_loss": loss, "risk": -1.0})
        seen.append(found.learning_rate)
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: cosine(o, STEPS),
        lambda o: warmup_cosine(o, STEPS, 4),
        lambda o: StepLR(o, 2),
        lambda o: MultiStepLR(o, [2, 5]),
        lambda o: CosineAnnealingLR(o, STEPS),
        lambda o: OneCycleLR(o, 0.1, STEPS),
    ],
)
def test_after_a_reset_the_schedule_goes_on_from_its_step(make) -> None:
    trainer = Erm()
    straight = advance(training(make, Erm()), STEPS)
    trainer.resets = {3: {}}
    reset = training(make, trainer)
    assert advance(reset, STEPS) == pytest.approx(straight, rel=1e-12)
    state = reset.players["model"].optimizer.state
    assert int(next(iter(state.values()))["step"]) == STEPS - 3  # it was made from scratch


def test_a_reset_with_another_rate_scales_what_is_left_of_the_schedule() -> None:
    trainer = Erm()
    trainer.resets = {3: {"lr": 0.5}}
    straight = advance(training(lambda o: cosine(o, STEPS)), STEPS)
    found = advance(training(lambda o: cosine(o, STEPS), trainer), STEPS)
    assert found == pytest.approx([*straight[:3], *(5 * rate for rate in straight[3:])])


def test_after_a_reset_a_plateau_still_knows_the_best() -> None:
    trainer = Erm()
    trainer.resets = {2: {"lr": 0.5}}
    timing = Timing(per="evaluation", monitor="risk")
    found = training(lambda o: ReduceLROnPlateau(o, patience=0), trainer, timing)
    found.schedules["model"].after_evaluation({"risk": 1.0})
    found.schedules["model"].after_evaluation({"risk": 2.0})
    assert advance(found, 3) == pytest.approx([0.01, 0.01, 0.05])
    found.schedules["model"].after_evaluation({"risk": 1.5})  # worse than before the reset
    assert advance(found, 1) == pytest.approx([0.005])


@pytest.mark.parametrize("stop", [2, 3, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda o: cosine(o, STEPS),
        lambda o: MultiStepLR(o, [2, 5]),
        lambda o: CosineAnnealingLR(o, STEPS),
        lambda o: OneCycleLR(o, 0.1, STEPS),
    ],
)
def test_a_state_goes_on_to_the_same_bits_also_around_a_reset(make, stop: int) -> None:
    def made() -> Training:
        trainer = Erm()
        trainer.resets = {3: {"lr": 0.5}}
        return training(make, trainer)

    whole, first, second = made(), made(), made()
    expected = advance(whole, STEPS)
    found = advance(first, stop)
    second.load_state_dict(first.state_dict())
    assert found + advance(second, STEPS - stop) == expected
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["scheduler"].pop("last_epoch"),
        lambda state: state["scheduler"].update(last_epoch="three"),
        lambda state: state["scheduler"].update(base_lrs=[]),
        lambda state: state.update(ticks=None),
    ],
)
def test_a_state_of_another_schedule_is_refused(change) -> None:
    schedule = Schedule(StepLR(sgd(), 2), Timing())
    state = schedule.state_dict()
    state["scheduler"] = dict(state["scheduler"])
    change(state)
    with pytest.raises(ValueError, match=r"its scheduler|the scheduler"):
        schedule.load_state_dict(state)


def test_without_a_schedule_a_checkpoint_is_what_it_was() -> None:
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    plain = Training(model(), Erm(), functools.partial(torch.optim.Adam, lr=0.1), observer)
    assert "schedules" not in plain.state_dict()
    groups = plain.players["model"].optimizer.param_groups
    assert "initial_lr" not in groups[0]
