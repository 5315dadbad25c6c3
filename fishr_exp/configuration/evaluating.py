"""What `fishr-eval` is asked for: a run's configuration, with other data, device or precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fishr_exp.configuration.command_line import quoted
from fishr_exp.configuration.options import conf_dir, search_path
from fishr_exp.configuration.recorded import recorded_arguments
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.keys import given_as
from fishr_exp.runs.reading import Run

_ROOT = ("device", "precision", "evaluation_batch_size", "num_workers")
_KNOWN = ("dataset", "dataset.KEY", *_ROOT)
_OF_THE_NETWORK = "image_size"  # a key of a dataset that other data take over from the run


def asked_arguments(run: Run, words: Sequence[str], config_dir: str | None = None) -> Any:
    """Return what prepares a run, changed by overrides.

    Args:
        run: The run.
        words: Overrides. `dataset=NAME` chooses other data, in the size of the run's images unless
            `dataset.image_size` is given; `dataset.KEY=VALUE` alone changes a key of the run's own.
        config_dir: A folder of options, as for `fishr-exp`.

    Raises:
        ConfigError: If an override is of another key, or a value is wrong.
    """
    given = [_checked(o) for o in OverridesParser.create().parse_overrides(quoted(words))]
    of_data = {o.key_or_group: o for o in given if o.key_or_group.startswith("dataset")}
    changes = {o.key_or_group: _value(o) for o in given if o.key_or_group in _ROOT}
    option = run.dataset
    if chosen := of_data.pop("dataset", None):
        option = _value(chosen)
        if not isinstance(option, str) or not option:
            reason = "must be the name of an option"
            raise ConfigError("dataset", option, reason, "pass dataset=NAME")
        typed = [o.input_line for o in of_data.values() if o.input_line]
        dataset = _composed(run, [f"dataset={option}", *typed], config_dir)
        size = _own_dataset(run).get(_OF_THE_NETWORK)
        is_given = f"dataset.{_OF_THE_NETWORK}" in of_data
        if size is not None and _OF_THE_NETWORK in dataset and not is_given:
            dataset[_OF_THE_NETWORK] = size
    else:
        dataset = _own_dataset(run)
        for key, override in of_data.items():
            _set(dataset, key.split(".")[1:], _value(override))
    if chosen or of_data:
        changes["dataset"] = dataset
    return recorded_arguments(run, changes, {"dataset": option})


def changes_data(words: Sequence[str]) -> bool:
    """Whether overrides ask for other data than a run's own."""
    keys = (word.lstrip("+").partition("=")[0] for word in words)
    return any(key == "dataset" or key.startswith("dataset.") for key in keys)


def _own_dataset(run: Run) -> dict[str, Any]:
    recorded = run.config.get("dataset")
    return dict(recorded) if isinstance(recorded, Mapping) else {}


def _checked(override: Override) -> Override:
    key = override.key_or_group
    known = key in (*_ROOT, "dataset") or key.startswith("dataset.")
    value = str(override.input_line).partition("=")[2]
    if not known:
        reason = "a run keeps what it was trained with"
        raise ConfigError(key, value, reason, f"choose from {', '.join(_KNOWN)}")
    if override.is_delete() or override.is_sweep_override() or override.package:
        raise ConfigError(key, value, "must be a single value", f"pass {key}=VALUE")
    return override


def _value(override: Override) -> Any:
    """Return a plain value, without the quotes of the grammar."""
    value: Any = OmegaConf.create({"value": override.value()})
    return OmegaConf.to_container(value, resolve=False)["value"]  # type: ignore[index,call-overload]


def _composed(run: Run, typed: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """Return the configuration of other data, drawn by the run's seed where they are drawn."""
    seed = run.config.get("data_seed")
    seed = run.seed if seed is None else seed  # 0 is one, too
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", [*typed, f"seed={seed}", *search_path(config_dir)])
    keys = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith("dataset."))
    if keys:
        hint = f"add {' '.join(map(given_as, keys))}"
        raise ConfigError("=??? ".join(keys), "???", "must be given", hint)
    data = OmegaConf.to_container(config.dataset, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _set(config: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    first, *others = keys
    if others:
        inner = config.get(first)
        config[first] = dict(inner) if isinstance(inner, Mapping) else {}
        _set(config[first], others, value)
    else:
        config[first] = value
