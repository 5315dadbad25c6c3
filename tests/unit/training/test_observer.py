"""The observer: best step, patience, minimum change, and what it may look at."""

from __future__ import annotations

import math

import pytest

from fishr_exp.errors import ConfigError
from fishr_exp.training.observer import Observer


def record(step: int, value: float | None, risk: float = 1.0) -> dict:
    return {
        "step": step,
        "losses": {"risk": risk},
        "train_accuracy": 0.5,
        "validation_accuracy": value,
        "accuracy": {"sketch": {"train": 0.1, "validation": value}},
    }


def observer(**changes) -> Observer:
    keywords = {
        "monitor": "validation_accuracy", "mode": "max", "patience": 2, "min_delta": 0.0,
        "keep": "best",
    }  # fmt: skip
    return Observer(**{**keywords, **changes})


def test_stops_when_patience_is_used_up() -> None:
    watcher = observer()
    verdicts = [watcher.observe(record(i, v)) for i, v in enumerate([0.5, 0.6, 0.6, 0.55])]
    assert [v.improved for v in verdicts] == [True, True, False, False]
    assert [v.stop for v in verdicts] == [False, False, False, True]
    assert watcher.best_step == 1


def test_min_delta_must_be_exceeded() -> None:
    watcher = observer(min_delta=0.125)
    assert watcher.observe(record(0, 0.5)).improved
    assert not watcher.observe(record(1, 0.625)).improved
    assert watcher.observe(record(2, 0.75)).improved


def test_min_mode_and_losses() -> None:
    watcher = observer(monitor="risk", mode="min")
    assert watcher.observe(record(0, None, risk=2.0)).improved
    assert watcher.observe(record(1, None, risk=1.0)).improved
    assert not watcher.observe(record(2, None, risk=1.5)).improved
    assert watcher.best == -1.0


def test_null_patience_never_stops() -> None:
    watcher = observer(patience=None)
    assert not any(watcher.observe(record(i, -i)).stop for i in range(50))


def test_a_test_domain_is_watched_only_by_name() -> None:
    assert not observer().watches(["sketch"])
    watcher = observer(monitor="accuracy/sketch/validation")
    assert watcher.watches(["sketch"])
    assert not watcher.watches(["sketch2", "photo"])
    assert watcher.observe(record(0, 0.3)).improved
    assert watcher.best == 0.3


def test_patience_is_not_used_up_before_the_penalty_acts() -> None:
    watcher = observer()
    watcher.not_before = 3
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    stops = [watcher.observe(record(step, value)).stop for step, value in enumerate(values)]
    assert stops == [False] * 5 + [True]  # two evaluations after step 3
    assert watcher.best_step == 0


def test_a_loss_that_the_method_does_not_give_is_refused() -> None:
    observer(monitor="risk").check_losses(["risk", "objective"])
    observer(monitor="accuracy/sketch/train").check_losses(["risk"])
    with pytest.raises(ConfigError, match=r"observer.monitor=penalty.*risk, objective"):
        observer(monitor="penalty").check_losses(["risk", "objective"])


def test_state_goes_through_a_checkpoint() -> None:
    first = observer()
    first.observe(record(0, 0.6))
    first.observe(record(1, 0.5))
    second = observer()
    second.load_state_dict(first.state_dict())
    assert second.observe(record(2, 0.55)).stop
    assert second.best_step == 0


def test_unknown_quantity_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"observer.monitor=speed.*risk.*accuracy/sketch/train"):
        observer(monitor="speed").observe(record(0, 0.5))


@pytest.mark.parametrize(
    "wrong", [{"mode": "up"}, {"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan},
              {"keep": "worst"}],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"observer.{next(iter(wrong))}="):
        observer(**wrong)
