"""The observer: best step, patience, minimum change, and what it may look at."""

from __future__ import annotations

import math

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.training.early_stopping import EarlyStopping


def record(step: int, value: float | None, risk: float = 1.0) -> tuple[int, dict[str, float]]:
    numbers = {
        "risk": risk,
        "train_accuracy": 0.5,
        "validation_accuracy": value,
        "accuracy/sketch/train": 0.1,
        "accuracy/sketch/validation": value,
    }
    return step, {name: number for name, number in numbers.items() if number is not None}


def observer(**changes) -> EarlyStopping:
    keywords = {
        "monitor": "validation_accuracy", "mode": "max", "patience": 2, "min_delta": 0.0,
        "keep": "best",
    }  # fmt: skip
    return EarlyStopping(**{**keywords, **changes})


def test_stops_when_patience_is_used_up() -> None:
    stopping = observer()
    verdicts = [stopping.observe(*record(i, v)) for i, v in enumerate([0.5, 0.6, 0.6, 0.55])]
    assert [v.improved for v in verdicts] == [True, True, False, False]
    assert [v.stop for v in verdicts] == [False, False, False, True]
    assert stopping.best_step == 1


def test_min_delta_must_be_exceeded() -> None:
    stopping = observer(min_delta=0.125)
    assert stopping.observe(*record(0, 0.5)).improved
    assert not stopping.observe(*record(1, 0.625)).improved
    assert stopping.observe(*record(2, 0.75)).improved


def test_min_mode_and_losses() -> None:
    stopping = observer(monitor="risk", mode="min")
    assert stopping.observe(*record(0, None, risk=2.0)).improved
    assert stopping.observe(*record(1, None, risk=1.0)).improved
    assert not stopping.observe(*record(2, None, risk=1.5)).improved
    assert stopping.best == -1.0


def test_null_patience_never_stops() -> None:
    stopping = observer(patience=None)
    assert not any(stopping.observe(*record(i, -i)).stop for i in range(50))


def test_a_test_domain_is_watched_only_by_name() -> None:
    assert not observer().watches(["sketch"])
    stopping = observer(monitor="accuracy/sketch/validation")
    assert stopping.watches(["sketch"])
    assert not stopping.watches(["sketch2", "photo"])
    assert stopping.observe(*record(0, 0.3)).improved
    assert stopping.best == 0.3


def test_patience_is_not_used_up_before_the_penalty_acts() -> None:
    stopping = observer()
    stopping.not_before = 3
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    stops = [stopping.observe(*record(step, value)).stop for step, value in enumerate(values)]
    assert stops == [False] * 5 + [True]  # two evaluations after step 3
    assert stopping.best_step == 0


def test_a_loss_that_the_method_does_not_give_is_refused() -> None:
    observer(monitor="risk").check_losses(["risk", "objective"])
    stopping = observer(monitor="accuracy/sketch/train")
    stopping.measured = ["accuracy/sketch/train"]
    stopping.check_losses(["risk"])
    with pytest.raises(ConfigError, match=r"observer.monitor=penalty.*risk, objective"):
        observer(monitor="penalty").check_losses(["risk", "objective"])


def test_state_goes_through_a_checkpoint() -> None:
    first = observer()
    first.observe(*record(0, 0.6))
    first.observe(*record(1, 0.5))
    second = observer()
    second.load_state_dict(first.state_dict())
    assert second.observe(*record(2, 0.55)).stop
    assert second.best_step == 0


def test_unknown_quantity_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"observer.monitor=speed.*risk.*accuracy/sketch/train"):
        observer(monitor="speed").observe(*record(0, 0.5))


@pytest.mark.parametrize(
    "wrong", [{"mode": "up"}, {"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan},
              {"keep": "worst"}],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"observer.{next(iter(wrong))}="):
        observer(**wrong)
