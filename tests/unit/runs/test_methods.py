"""What a run's method is called."""

from __future__ import annotations

import pytest

from fishr_exp.runs.methods import averaging_of, is_erm, method_of


def config(target: str | None):
    return {"trainer": {"_target_": target}} if target else {}


@pytest.mark.parametrize(
    ("name", "printed"), [("erm", "ERM"), ("fishr", "Fishr"), ("irm", "IRM"), ("vrex", "V-REx")]
)
def test_a_result_of_an_earlier_version_is_named_by_its_class(name, printed):
    run = config(f"fishr_exp.trainers.{name}.{name.title()}")
    assert method_of(run, None) == printed
    assert is_erm(run) == (name == "erm")


def test_what_a_method_calls_itself_comes_first():
    assert method_of(config("mylab.methods.make"), "LogitDecay") == "LogitDecay"


def test_a_class_from_outside_is_not_ours_whatever_it_is_called():
    run = config("mylab.erm.Erm")
    assert method_of(run, None) == "Erm"
    assert not is_erm(run)


def test_a_run_without_a_trainer_is_no_erm():
    assert not is_erm(config(None))


def test_an_average_of_runs_of_erm_is_no_baseline():
    average = {**config("fishr_exp.trainers.erm.Erm"), "average_of": {"how": "uniform", "runs": 2}}
    assert not is_erm(average)
    assert method_of(average, "ERM (uniform average of 2)") == "ERM (uniform average of 2)"


@pytest.mark.parametrize("damaged", [[1], 5, "ema", None])
def test_a_damaged_part_names_nothing(damaged):
    assert averaging_of({"averaging": damaged}) == ""
    assert not is_erm({"trainer": damaged})
    assert method_of({"trainer": damaged}, "Fishr") == "Fishr"
