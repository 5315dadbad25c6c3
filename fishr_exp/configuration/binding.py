"""From Hydra's configuration to the plain arguments of a run, checked key by key.

Every group's keys are the keywords of its `_target_`, and the root's keys the fields of
`Arguments`, so one signature serves as schema and as code.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fishr_exp.configuration import protocol, several  # noqa: F401 - the protocol's resolvers
from fishr_exp.configuration.permissions import ALLOW_TARGETS, allowed_targets, target
from fishr_exp.core.converting import convert
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.runs.identity import NEUTRAL, TARGET, folder_name
from fishr_exp.runs.keys import APART, CHOICES, KEYS, OF_A_PROTOCOL, PARTS, given_as

_PLAIN_TYPES = (bool, int, float, str, list, tuple, type(None))  # of defaults that can be recorded
# Arguments that no configuration holds.
SUPPLIED = ("labels", "config", "grouping", "timing")

if TYPE_CHECKING:
    from fishr_exp.training.arguments import Arguments


def run_name(config: DictConfig, trainer: str, typed: Sequence[str] = ()) -> str:
    """Name a run's folder by what the run is: method, gamma, seed, digest of all its settings.

    Args:
        config: The configuration, without Hydra's own part.
        trainer: The option of `trainer`.
        typed: The overrides of the command line.
    """
    return folder_name(plain_of(config, typed), trainer)


def plain_of(config: DictConfig, typed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the plain, resolved configuration that a run's folder is named by.

    Args:
        config: The configuration, without Hydra's own part.
        typed: The overrides of the command line.
    """
    config = _without_leftovers(config, typed)
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    check_output_dir(plain.get("output_dir"))
    return plain


def check_output_dir(value: object, key: str = "output_dir") -> str:
    """Return the folder, `~` expanded; refuse an empty one, which would be the root of all files.

    Raises:
        ConfigError: If `value` names no folder.
    """
    if value is None or not str(value).strip():
        reason = "must name the folder that the runs are written to"
        raise ConfigError(key, value, reason, f"pass {key}=DIR")
    return os.path.expanduser(str(value))


def arguments(
    config: DictConfig, choices: Mapping[str, str], typed: Sequence[str] = ()
) -> Arguments:
    """Turn a composed configuration into the plain arguments of a run.

    Args:
        config: The configuration, without Hydra's own part.
        choices: The selected options, by group.
        typed: The overrides of the command line.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is of the wrong type.
    """
    from fishr_exp.training.arguments import Arguments, Grouping, Timing  # imports torch

    config = _without_leftovers(config, typed)
    plain, failure = _resolved(config)
    is_whole = plain is not None and not _has_missing(plain)
    if not is_whole and (missing := sorted(OmegaConf.missing_keys(config))):
        hint = f"add {' '.join(map(given_as, missing))}"
        if "test_domains" in missing and (known := _known_domains(config.dataset)):
            hint += f"; the domains are {', '.join(known)}"
        raise ConfigError("=??? ".join(missing), "???", "must be given", hint)
    if plain is None:
        assert failure is not None
        raise failure
    apart = (*PARTS, *APART, NEUTRAL)
    root = {key: value for key, value in plain.items() if key not in apart}
    also = [key for key in (*PARTS, *APART) if key not in CHOICES]
    checked = bind(Arguments, root, "", supplied=(*PARTS, *SUPPLIED), also=also)
    more = allowed_targets(plain.get(ALLOW_TARGETS))
    parts: dict[str, Any] = {group: part(plain.get(group), group, more) for group in PARTS}
    words = [word.lstrip("+").partition("=")[0] for word in typed]
    labels = {
        group: str(plain[group][TARGET]).rpartition(".")[2]
        if f"{group}.{TARGET}" in words and group != "trainer"
        else choices[group]
        for group in ("dataset", "model", "trainer")
    }
    own: dict[str, Any] = {
        "grouping": Grouping(**_own(plain, "optimizer", Grouping)),
        "timing": Timing(**_own(plain, "scheduler", Timing)),
    }
    return Arguments(**checked, **parts, **own, labels=labels, config=plain)


def _own(config: Mapping[str, Any], group: str, schema: Callable[..., Any]) -> dict[str, Any]:
    """Return the keys of a group that the run takes, checked against a signature."""
    node = config.get(group) or {}
    return bind(schema, {k: node[k] for k in KEYS[group].own if k in node}, f"{group}.")


def _resolved(config: DictConfig) -> tuple[dict[str, Any] | None, Exception | None]:
    """Return the plain configuration, or why it cannot be resolved."""
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)), None
    except Exception as failure:  # noqa: BLE001 - of any resolver
        return None, failure


def _has_missing(node: object) -> bool:
    """Whether a value may be missing; text of the environment may look like it."""
    if isinstance(node, dict | list):
        return any(map(_has_missing, node.values() if isinstance(node, dict) else node))
    return node == "???"


def _known_domains(dataset: Any) -> list[str]:
    """Return the domains of a dataset, as far as its node or its folder shows them."""

    def of(key: str) -> Any:
        return OmegaConf.select(dataset, key, throw_on_missing=False)

    named = of("domains") or of("lists")
    if isinstance(named, ListConfig | DictConfig):
        return [str(name) for name in named]
    root = expanded(str(of("root") or ""))
    if "image_folder" not in str(of(TARGET)) or not of("root") or not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def typed_words(of_hydra: Any) -> list[str]:
    """Return the overrides of the command line, as Hydra's part of the configuration has them."""
    words = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    return typing.cast(list[str], words)


def _without_leftovers(config: DictConfig, typed: Sequence[str]) -> DictConfig:
    """Leave out the keys of an option whose `_target_` was replaced on the command line.

    If the new target takes all of them, they stay. Otherwise it gets its own defaults, what was
    typed, and of the option's keys only those that it requires.
    """
    words = [word.lstrip("+").partition("=")[0] for word in typed]
    replaced = [group for group in PARTS if f"{group}.{TARGET}" in words]
    if not replaced:
        return config
    config = copy.deepcopy(config)
    allowed = allowed_targets(OmegaConf.to_container(config).get(ALLOW_TARGETS))  # type: ignore[union-attr]
    for group in replaced:
        node = config[group]
        parameters = _parameters(target(str(node[TARGET]), group, allowed))
        kept = (TARGET, NEUTRAL, *KEYS[group].own)
        later = [k for k, neutral in (node.get(NEUTRAL) or {}).items() if node.get(k) == neutral]
        with open_dict(node):  # without the keys that came later, it is what it was before them
            for key in set(later) - {*kept, *parameters, *(w.partition(".")[2] for w in words)}:
                del node[key]
        if all(key in (*kept, *parameters) for key in node):
            continue  # it takes what the option has
        with open_dict(node):
            for key, parameter in parameters.items():
                plain = isinstance(parameter.default, _PLAIN_TYPES)
                if (
                    plain
                    and f"{group}.{key}" not in words
                    and key not in (KEYS[group].builds or ())
                ):
                    node[key] = parameter.default
            for key in [key for key in node if key not in (*kept, *parameters)]:
                if f"{group}.{key}" not in words:
                    del node[key]
    return config


def part(
    node: object, group: str, allowed: Sequence[str] = (), place: str = ""
) -> Callable[..., Any] | None:
    """Return what a group's node builds, ready to be called; None of an empty group.

    Args:
        node: The group's part of the configuration.
        group: Its name.
        allowed: Packages, modules or names that `_target_` may name besides the group's own parts.
        place: The key of the node, where it is not the group's name.
    """
    place = place or group
    if group == several.GROUP and node is not None:
        _lend_networks()
    if group == several.GROUP and several.is_several(node):
        from fishr_exp.tracking.several import Mirrors

        named = typing.cast(Mapping[str, Any], node)
        parts = {k: part(own, group, allowed, f"{group}.{k}") for k, own in named.items()}
        return functools.partial(Mirrors, build=typing.cast(Mapping[str, Any], parts))
    if node is None and KEYS[group].optional:
        return None
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ConfigError(place, node, "has no _target_ to build", f"pass {group}=NAME")
    build = target(str(node[TARGET]), group, allowed)
    own = KEYS[group].own
    keywords = {k: value for k, value in node.items() if k not in (TARGET, NEUTRAL, *own)}
    supplied = KEYS[group].builds or ()
    parameters = _parameters(build)
    without = [name for name in supplied if name not in parameters and name != "params"]
    if without and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if group in ("model", "scheduler"):  # a network that knows its sizes; any schedule
            bound = bind(build, keywords, f"{place}.", supplied, own)
            return lambda **given: build(
                **bound, **{key: value for key, value in given.items() if key in parameters}
            )
        reason = f"does not take {without[0]}, which every run gives to its {group}"
        raise ConfigError(f"{place}.{TARGET}", node[TARGET], reason, f"add {without[0]} to it")
    return functools.partial(build, **bind(build, keywords, f"{place}.", supplied, own))


def _lend_networks() -> None:
    """Let trackers have the network of a run, which they cannot build."""
    from fishr_exp.configuration.recorded import network_of
    from fishr_exp.tracking.mirror import Mirror

    Mirror.model_of = staticmethod(network_of)


def bind(
    build: Callable[..., Any],
    keywords: Mapping[str, Any],
    prefix: str,
    supplied: Iterable[str] = (),
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """Check keywords against the signature of `build`; return them as its annotations say.

    Args:
        build: What will be called.
        keywords: What the configuration holds for it.
        prefix: Of the keys in messages, e.g. `trainer.`.
        supplied: Parameters that the configuration must not hold.
        also: Further keys to name as allowed.

    Raises:
        ConfigError: If a keyword is unknown, missing or of the wrong type.
    """
    parameters = {k: p for k, p in _parameters(build).items() if k not in supplied}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in keywords.items():
        if name not in parameters and not takes_any:
            known = [key for key in (*parameters, *also) if key not in OF_A_PROTOCOL]
            raise unknown_key(f"{prefix}{name}", value, known)
    for name, parameter in parameters.items():
        various = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and name not in keywords and not various:
            hint = f"add {given_as(f'{prefix}{name}')}"
            raise ConfigError(f"{prefix}{name}", "???", "must be given", hint)
    is_plain_class = inspect.isclass(build) and not is_dataclass(build)
    try:
        hints = typing.get_type_hints(build.__init__ if is_plain_class else build)
    except NameError:  # PyTorch imports some of its types for a type checker only
        hints = {}
    return {
        name: convert(f"{prefix}{name}", value, hints.get(name, Any))
        for name, value in keywords.items()
    }


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(build).parameters


def unknown_key(key: str, value: object, allowed: Iterable[str]) -> ConfigError:
    """Return the error for an unknown key, with the nearest known one."""
    allowed = list(allowed)
    near = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    prefix = key.rpartition(".")[0]
    hint = f"did you mean {prefix}.{near[0]}?" if prefix and near else ""
    if near and not prefix:
        hint = f"did you mean {near[0]}?"
    known = f"; known are {', '.join(allowed)}" if allowed else ""
    return ConfigError(key, value, f"no such key{known}", hint)
