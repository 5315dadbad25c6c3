"""`experiment=zoo_quickstart` has every method, with settings that act in its few steps."""

from __future__ import annotations

import functools

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.options import conf_dir

TRAINERS = conf_dir() / "trainer"
# Options that are no method of their own: any combination of others, and how a start is trained.
NO_METHODS = {"composed", "linear_probe"}


def is_preset(option: str) -> bool:
    """Whether an option only changes keys of another one."""
    return "defaults" in yaml.safe_load((TRAINERS / f"{option}.yaml").read_text())


@functools.cache
def swept() -> list[str]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["experiment=zoo_quickstart"], return_hydra_config=True)
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides([f"trainer={config.hydra.sweeper.params.trainer}"])
        return [str(name) for name in override.sweep_string_iterator()]


def composed(trainer: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", ["experiment=zoo_quickstart", f"trainer={trainer}"])


def test_it_has_every_method() -> None:
    """A new option takes part by itself; presets are recognized by their names."""
    options = {path.stem for path in TRAINERS.glob("*.yaml")}
    methods = {option for option in options if not is_preset(option)} - NO_METHODS
    assert methods == set(swept())
    assert len(swept()) == len(methods)


@pytest.mark.parametrize("trainer", swept())
def test_every_schedule_acts_before_the_end(trainer: str) -> None:
    """No penalty begins after the last step, and no learning rate of a protocol comes with it."""
    config = composed(trainer)
    for key, value in config.trainer.items():
        if str(key).endswith(("anneal_steps", "classifier_steps")):
            assert value < config.total_steps, key
        if key == "lr_after":
            assert value is None


def test_what_a_method_needs_is_for_methods_that_there_are() -> None:
    needs = {path.stem for path in (conf_dir() / "search/of_trainer/zoo_quickstart").glob("*.yaml")}
    assert needs <= set(swept())
    for trainer in needs:  # and changes only keys of the trainer, which all have
        content = OmegaConf.load(conf_dir() / f"search/of_trainer/zoo_quickstart/{trainer}.yaml")
        assert set(content) == {"trainer"}
        assert set(content.trainer) <= set(
            yaml.safe_load((TRAINERS / f"{trainer}.yaml").read_text())
        )
