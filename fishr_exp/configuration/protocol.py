"""DomainBed's protocol in the configuration: draws of hyperparameters, seeds, departures, digest.

Source: Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code. Departs: the random streams
are our own, so the drawn values are others, from the same distributions.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import TARGET, digest, flatten, id_of, normal, settings
from fishr_exp.runs.keys import OF_EACH_RUN


def _uniform(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


# From u in [0, 1) to a value; a whole number is rounded down, as in DomainBed.
DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "uniform": _uniform,
    "int_uniform": lambda u, low, high: int(_uniform(u, low, high)),
    "10_to": lambda u, low, high: 10 ** _uniform(u, low, high),
    "int_10_to": lambda u, low, high: int(10 ** _uniform(u, low, high)),
    "int_2_to": lambda u, low, high: int(2 ** _uniform(u, low, high)),
    "one_of": lambda u, *values: values[int(u * len(values))],
}


def draw(name: str, default: Any, distribution: str, *bounds: Any, _root_: DictConfig) -> Any:
    """Return the default at hparams_seed 0, else a draw: the resolver `draw` of `conf/search`.

    A draw depends on hparams_seed, trial_seed and the name alone: not on the method or on what
    else is drawn.

    Args:
        name: The name of the random stream.
        default: The value at hparams_seed 0.
        distribution: A key of `DISTRIBUTIONS`: of the value, or of the exponent of 10 or 2.
        *bounds: Lower and upper bound, or for `one_of` the values.

    Raises:
        ConfigError: If there is no protocol, or its seeds are not whole numbers, 0 or more.
    """
    trial_seed, hparams_seed = _seeds(_root_)
    if hparams_seed == 0:
        return default
    u = random.Random(_derive(hparams_seed, trial_seed, name)).random()
    return DISTRIBUTIONS[distribution](u, *bounds)


def run_seed(*, _root_: DictConfig) -> int:
    """Return the seed of weights and minibatches: the resolver `run_seed` of `conf/protocol`.

    It follows from dataset, method, test domains (in any order), hparams_seed and trial_seed.

    Raises:
        ConfigError: As for `draw`.
    """
    trial_seed, hparams_seed = _seeds(_root_)
    # By what is built: a configuration does not know its options' names.
    keys = ("dataset._target_", "dataset.name", "trainer._target_")
    built = [id_of(str(OmegaConf.select(_root_, key))) for key in keys]
    missing = OmegaConf.is_missing(_root_, "test_domains")
    test_domains = [] if missing else sorted(normal("test_domains", [*_root_.test_domains]))
    return _derive(hparams_seed, trial_seed, *built, *test_domains) % 2**31


def of_dataset(values: Mapping[str, Any], otherwise: Any, *, _root_: DictConfig) -> Any:
    """Return the value for the dataset's name, or `otherwise`: the resolver `of_dataset`."""
    name = OmegaConf.select(_root_, "dataset.name")
    builder = id_of(str(OmegaConf.select(_root_, f"dataset.{TARGET}")))
    return values.get(name or builder.rpartition(".")[2], otherwise)


def unless(given: Any, default: Any) -> Any:
    """Return `default` unless something is given in its place: the resolver `unless`."""
    return default if given is None else None


def variable(name: str, default: str) -> str:
    """Return a variable of the environment, or `default` if it is absent or empty."""
    return os.environ.get(name) or default


def standing(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """Say how a run stands to its preset; called within a Hydra application.

    Args:
        config: The composed configuration, with a `protocol`.
        choices: The selected options, by group.

    Returns:
        `departures`, the keys whose values are not the preset's, and `digest`, which names the
        settings that make up the protocol, the ranges of hyperparameters among them, but not what
        differs between the runs of a sweep or between methods, such as the batch size that a
        method has of its own, or the averaging of weights. Runs of one dataset can be compared if
        their digests are equal.

    Raises:
        ConfigError: If hyperparameters are to be drawn for a method that has no ranges.
    """
    check_ranges(config, choices)
    groups = ("dataset", "trainer", "protocol")
    preset = hydra.compose("config", [f"{group}={choices[group]}" for group in groups])
    for key in OF_EACH_RUN:
        if (value := OmegaConf.select(config, key, throw_on_missing=False)) is not None:
            OmegaConf.update(preset, key, value)
    there, here = (settings(_plain(c, resolve=True)) for c in (preset, config))
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    of_erm = {**choices, "trainer": "erm"}
    shared = hydra.compose("config", [f"{group}={of_erm[group]}" for group in groups])
    return {"departures": _by_group(keys), "digest": _digest(config, preset, shared)}


def check_ranges(config: DictConfig, choices: Mapping[str, str]) -> None:
    """Refuse draws for a method without ranges, which would be its defaults again and again.

    Raises:
        ConfigError: If there are none.
    """
    if (
        not config.get("protocol")
        or config.protocol.hparams_seed == 0
        or choices.get("search") is None
    ):
        return
    group = f"search/of_trainer/{choices['search']}"
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    if choices["trainer"] not in known:
        raise ConfigError(
            "trainer", choices["trainer"],
            f"search={choices['search']} has no ranges for it; choose from {', '.join(known)}",
            f"add conf/{group}/{choices['trainer']}.yaml, or pass protocol.hparams_seed=0",
        )  # fmt: skip


def _digest(config: DictConfig, preset: DictConfig, shared: DictConfig) -> str:
    apart = (*OF_EACH_RUN, "protocol.name")
    # Not resolved: the ranges of the draws are part of a protocol, and the draws are not.
    plain = _plain(config, resolve=False)
    values, typed = settings(plain), flatten(plain)
    spelled, of_all = (flatten(_plain(c, resolve=False)) for c in (preset, shared))

    def written(key: str, value: Any) -> Any:
        if str(typed[key]).startswith("${any:"):  # a default that follows from other keys
            return OmegaConf.select(config, key)
        # As the preset spells it, else as it was typed: digests of earlier versions hold 0.0.
        if key.endswith(TARGET):
            return value
        same = key in spelled and normal(key, spelled[key]) == value
        # What a method's ranges set beside its own keys is of the method, as ARM's batch size.
        return of_all.get(key, spelled[key]) if same else typed[key]

    parts = {
        key: written(key, value)
        for key, value in values.items()
        if key not in apart and not key.startswith(("trainer.", "averaging."))
    }
    return digest(parts)


def _by_group(keys: list[str]) -> list[str]:
    """Name a group in place of its keys where something else is built."""
    others = {key.partition(".")[0] for key in keys if key.endswith("._target_")}
    named = (key.partition(".")[0] if key.partition(".")[0] in others else key for key in keys)
    return sorted(set(named))


def _plain(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _seeds(root: DictConfig) -> tuple[int, int]:
    protocol = root.get("protocol")
    if protocol is None:
        raise ConfigError("search", "domainbed", "draws by a protocol's seeds", "add protocol=NAME")
    seeds = []
    for key in ("trial_seed", "hparams_seed"):
        seed = protocol.get(key)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"protocol.{key}", seed, "must be a whole number, 0 or more")
        seeds.append(seed)
    return seeds[0], seeds[1]


def _derive(*purpose: str | int) -> int:
    from fishr_exp.core.seeding import derive  # imports torch

    first, *others = purpose
    return derive(int(first), *others)


def _register() -> None:
    """Register the resolvers, for every composition of a configuration."""
    OmegaConf.register_new_resolver("draw", draw, replace=True)
    OmegaConf.register_new_resolver("run_seed", run_seed, replace=True)
    OmegaConf.register_new_resolver("of_dataset", of_dataset, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)
    OmegaConf.register_new_resolver("variable", variable, replace=True)
    OmegaConf.register_new_resolver("any", lambda *values: any(values), replace=True)


_register()
