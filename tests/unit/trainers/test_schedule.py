"""The weight of a penalty over the steps."""

from __future__ import annotations

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers import Schedule
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.vrex import Vrex


def test_a_linear_ramp_goes_in_equal_steps() -> None:
    schedule = Schedule(ramp="linear", ramp_steps=4)
    found = [schedule.weight(8.0, 10, step) for step in (0, 9, 10, 11, 12, 13, 14, 99)]
    assert found == [0, 0, 0, 2, 4, 6, 8, 8]


def test_an_exponential_ramp_multiplies_its_slope() -> None:
    schedule = Schedule(ramp="exponential", ramp_steps=3)
    found = [schedule.weight(999.0, 0, step) for step in range(5)]
    assert found == pytest.approx([0, 9, 99, 999, 999])


def test_a_ramp_starts_where_the_weight_was() -> None:
    method = Vrex(101.0, anneal_steps=5, ramp="linear", ramp_steps=10)
    assert [method.weight(step) for step in (0, 5, 6, 15)] == [1, 1, 11, 101]
    assert method.resets == {5: {}}


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_gamma_zero_is_zero_on_a_ramp(ramp: str) -> None:
    method = Irm(0.0, ramp=ramp, ramp_steps=10)
    assert {method.weight(step) for step in range(20)} == {0.0}


@pytest.mark.parametrize(
    ("ramp", "steps", "key"),
    [("cosine", 5, "ramp"), ("linear", 0, "ramp_steps"), ("none", 5, "ramp_steps"),
     ("linear", -1, "ramp_steps")],
)  # fmt: skip
def test_refuses(ramp: str, steps: int, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.{key}="):
        Vrex(1.0, ramp=ramp, ramp_steps=steps)
