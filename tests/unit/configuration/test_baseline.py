from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from fishr_exp.configuration.baseline import AddBaseline, with_zero


def overridden(task: list[str], params: dict[str, str] | None = None):
    config = OmegaConf.create(
        {"hydra": {"overrides": {"task": task}, "sweeper": {"params": params}}}
    )
    OmegaConf.set_readonly(config.hydra, False)
    AddBaseline().on_multirun_start(config, config_name="config")
    return list(config.hydra.overrides.task), config.hydra.sweeper.params


@pytest.mark.parametrize(
    ("override", "more"),
    [
        ("trainer.gamma=1,10", "trainer.gamma=0,1,10"),
        ("trainer.gamma=choice(1,0.5)", "trainer.gamma=0,1,0.5"),
        ("trainer.gamma=range(1,4)", "trainer.gamma=0,1,2,3"),
        ("+trainer.gamma=1e3,1e4", "+trainer.gamma=0,1000.0,10000.0"),
    ],
)
def test_zero_is_put_in_front(override, more):
    assert with_zero(override) == more


@pytest.mark.parametrize(
    "override",
    [
        "trainer.gamma=5",
        "trainer.gamma=0,1",
        "trainer.gamma=0.0,1",
        "trainer.gamma=interval(0.1,10)",
        "seed=1,2",
        "trainer.anneal_steps=1,2",
        "~trainer.gamma",
    ],
)
def test_nothing_is_to_add(override):
    assert with_zero(override) is None


def test_of_the_command_line(caplog):
    caplog.set_level("INFO")
    task, _ = overridden(["seed=0,1", "trainer.gamma=1,10"])
    assert task == ["seed=0,1", "trainer.gamma=0,1,10"]
    assert caplog.messages == ["trainer.gamma=0,1,10: gamma 0 is added, the ERM baseline"]


def test_of_the_configuration_and_the_command_line_goes_first(caplog):
    caplog.set_level("INFO")
    task, params = overridden(["seed=0,1"], {"trainer.gamma": "1,10", "seed": "0"})
    assert (task, dict(params)) == (["seed=0,1"], {"trainer.gamma": "0,1,10", "seed": "0"})
    for gamma in ("3", "0,3"):
        task, params = overridden([f"trainer.gamma={gamma}"], {"trainer.gamma": "1,10"})
        assert task == [f"trainer.gamma={gamma}"]
        assert params["trainer.gamma"] == "1,10"
    assert len(caplog.messages) == 1


def test_without_a_sweep_over_gamma_nothing_is_said(caplog):
    caplog.set_level("INFO")
    assert overridden(["seed=0,1"], {"trainer": "erm,fishr"})[0] == ["seed=0,1"]
    assert caplog.messages == []
