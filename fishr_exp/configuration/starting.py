"""What stands at the start of a run: names for its folder, our sweepers, its checked arguments."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from fishr_exp.configuration.binding import arguments, check_output_dir, run_name, typed_words
from fishr_exp.configuration.options import conf_dir
from fishr_exp.configuration.protocol import standing
from fishr_exp.configuration.secrecy import with_variables

if TYPE_CHECKING:
    from fishr_exp.training.arguments import Arguments

log = logging.getLogger(__name__)


def register_run_name() -> None:
    """Let configurations name the folders of a run and of a sweep."""
    # Only hydra.run and hydra.sweep use them; the run's own keys are all at the root.
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("runs_dir", _runs_dir, replace=True)


def prefer_own_sweepers() -> None:
    """Make ours the default sweeper, and `hydra/sweeper=optuna` ours.

    A default of `conf/config.yaml` could not be overridden by an experiment. The optuna of
    hydra-optuna-sweeper would minimize, and Hydra refuses two options of one name.
    """
    Plugins.instance()  # which loads the options of other packages
    options = ConfigStore.instance().repo["hydra"]
    options["sweeper"].pop("optuna.yaml", None)
    for default in options["config.yaml"].node.defaults:
        if "sweeper" in default:
            default["sweeper"] = "fishr_exp"


@contextlib.contextmanager
def application() -> Iterator[None]:
    """In the block, let configurations be composed without the command's own start of Hydra."""
    register_run_name()
    prefer_own_sweepers()
    GlobalHydra.instance().clear()  # of an earlier cell of a notebook
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def checked_arguments(config: DictConfig, of_hydra: Any) -> Arguments:
    """Return the plain arguments of a run that is about to start.

    Args:
        config: Composed, without Hydra's own part.
        of_hydra: Hydra's own part.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is of the wrong type.
    """
    choices = of_hydra.runtime.choices
    checked = arguments(config, choices, typed_words(of_hydra))
    checked = replace(checked, config=with_variables(config, checked.config))
    if config.get("protocol"):
        checked.config["protocol"].update(_standing(config, choices))
    return checked


def _standing(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """Return how the run stands to its protocol's preset, and say where it departs."""
    found = standing(config, choices)
    if found["departures"]:
        keys = ", ".join(found["departures"])
        log.warning("departs from protocol=%s in: %s", choices["protocol"], keys)
    return found


def _run_name(*, _root_: DictConfig) -> str:
    config = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    trainer = str(_root_.hydra.runtime.choices.get("trainer"))
    return run_name(config, trainer, typed_words(_root_.hydra))


def _runs_dir(*, _root_: DictConfig) -> str:
    return check_output_dir(_root_.output_dir)
