"""From Hydra's configuration to the plain arguments of `run`, checked key by key.

Every group's keys are the keywords of its `_target_`, and the root's keys those of `run`, so one
signature serves as schema and as code.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fishr_exp import protocol  # noqa: F401 - its resolvers must be known
from fishr_exp.errors import ConfigError
from fishr_exp.results.settings import settings

GROUPS = ("dataset", "model", "loss", "trainer", "optimizer", "observer", "tracker")
# Keywords that `run` gives to what it builds, and that no configuration holds.
SUPPLIED = {
    "model": ("input_shape", "num_classes"),
    "trainer": ("loss",),
    "optimizer": ("params",),
    "tracker": ("folder",),
}
# What a configuration may build: what is defined there, or begins with a name in `allow_targets`.
TARGETS = (
    "fishr_exp.data",
    "fishr_exp.models",
    "fishr_exp.gradient_variance",
    "fishr_exp.trainers",
    "fishr_exp.training.observer",
    "fishr_exp.tracking",
    "torch.optim",
)
ALLOW_TARGETS = "allow_targets"
# Root keys that are no arguments of `run`: where it is written, and what it may be built of.
APART = ("output_dir", "sweep_name", ALLOW_TARGETS)
# A root key that `run` only records.
RECORDED = ("protocol",)
# Arguments of `run` that a protocol sets. Absent without one, so that they are in no run's name.
SET_BY_A_PROTOCOL = ("total_steps", "data_seed")
# How to give keys that must be given, where VALUE would not say it.
WRITTEN = {
    "test_domains": "test_domains=[NAME] (a domain to leave out)",
    "dataset.root": "dataset.root=DIR (the folder of its data)",
    "dataset.lists": "dataset.lists={DOMAIN:[FILE],OTHER:[FILE]} (files of lines `path label`)",
}
# How types are called to people.
_PLAIN = {
    "torch.Tensor": "Tensor",
    "Mapping[str, Sequence[str]]": "{NAME:[WORD,...],...}",
    "Sequence[str]": "[WORD,...]",
}
# Arguments of `run` that the command line supplies.
GIVEN_TO_RUN = ("folder", "labels", "config")


def conf_dir() -> Path:
    """Return the folder of the configuration: in the installed package, or beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def run_name(config: DictConfig, trainer: str) -> str:
    """Name a run's folder by what the run is: method, gamma, seed, digest of all its settings."""
    plain = _whole_numbers_as_int(OmegaConf.to_container(config, resolve=True))
    digest = hashlib.sha256(json.dumps(settings(plain), sort_keys=True).encode()).hexdigest()[:8]
    gamma = (plain.get("trainer") or {}).get("gamma")
    parts = [trainer, "" if gamma is None else f"gamma{gamma}", f"seed{plain.get('seed')}", digest]
    return "-".join(part.replace("/", "_") for part in parts if part)


def _whole_numbers_as_int(value: Any) -> Any:
    """Write 1.0 as 1, so that `trainer.gamma=1` and `trainer.gamma=1.0` are one run."""
    if isinstance(value, dict):
        return {key: _whole_numbers_as_int(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers_as_int(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return int(value) if whole else value  # 1e300 stays as short as it is


def arguments(config: DictConfig) -> dict[str, Any]:
    """Turn a composed configuration into keyword arguments of `run`.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is of the wrong type.
    """
    from fishr_exp.run import run  # imports torch

    if missing := sorted(OmegaConf.missing_keys(config)):
        mend = f"add {' '.join(WRITTEN.get(key, f'{key}=VALUE') for key in missing)}"
        raise ConfigError("=??? ".join(missing), "???", "must be given", mend)
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    apart = (*GROUPS, *APART, *RECORDED)
    root = {key: value for key, value in plain.items() if key not in apart}
    checked = bind(run, root, "", supplied=(*GROUPS, *GIVEN_TO_RUN), also=(*GROUPS, *APART))
    more = _convert(ALLOW_TARGETS, plain.get(ALLOW_TARGETS) or [], list[str])
    parts = {group: part(plain.get(group), group, more) for group in GROUPS}
    return {**checked, **parts, "config": plain}


def part(node: object, group: str, allowed: Sequence[str] = ()) -> Callable[..., Any] | None:
    """Return what a group's node builds, ready to be called; None of an empty group.

    Args:
        node: The group's part of the configuration.
        group: Its name.
        allowed: Packages, modules or names that `_target_` may name besides `TARGETS`. A
            configuration may come from somebody else, and must not call just anything.
    """
    if node is None and group == "tracker":
        return None
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(group, node, "has no _target_ to build", f"pass {group}=NAME")
    target = _target(str(node["_target_"]), group, allowed)
    keywords = {key: value for key, value in node.items() if key != "_target_"}
    supplied = SUPPLIED.get(group, ())
    return functools.partial(target, **bind(target, keywords, f"{group}.", supplied))


def bind(
    target: Callable[..., Any],
    keywords: Mapping[str, Any],
    prefix: str,
    supplied: Iterable[str] = (),
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """Check keywords against the signature of `target`; return them as its annotations say.

    Args:
        target: What will be called.
        keywords: What the configuration holds for it.
        prefix: Of the keys in messages, e.g. `trainer.`.
        supplied: Parameters that the configuration must not hold.
        also: Further keys to name as allowed.

    Raises:
        ConfigError: If a keyword is unknown, missing or of the wrong type.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in supplied
    }
    for name, value in keywords.items():
        if name not in parameters:
            known = [key for key in (*parameters, *also) if key not in SET_BY_A_PROTOCOL]
            raise unknown_key(f"{prefix}{name}", value, known)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in keywords:
            raise ConfigError(
                f"{prefix}{name}", "???", "must be given", f"add {prefix}{name}=VALUE"
            )
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return {
        name: _convert(f"{prefix}{name}", value, hints.get(name, Any))
        for name, value in keywords.items()
    }


def unknown_key(key: str, value: object, allowed: Iterable[str]) -> ConfigError:
    """Return the error for a key that nobody knows, with the nearest known one."""
    allowed = list(allowed)
    near = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    prefix = key.rpartition(".")[0]
    mend = f"did you mean {prefix}.{near[0]}?" if prefix and near else ""
    if near and not prefix:
        mend = f"did you mean {near[0]}?"
    known = f"; known are {', '.join(allowed)}" if allowed else ""
    return ConfigError(key, value, f"no such key{known}", mend)


def _target(name: str, group: str, allowed: Sequence[str]) -> Callable[..., Any]:
    reason = "a configuration builds only our datasets, models and the like, and torch.optim"
    mend = f"pass {ALLOW_TARGETS}=[{name.partition('.')[0]}] if you trust it"
    refused = ConfigError(f"{group}._target_", name, reason, mend)
    if not _within(name, (*TARGETS, *allowed)):
        raise refused
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{group}._target_", name, f"cannot be imported ({error})", f"pass {group}=NAME"
        ) from error
    # A name that one of our modules has imported is not ours.
    if not _within(name, allowed) and not _within(str(getattr(found, "__module__", "")), TARGETS):
        raise refused
    return found


def _within(name: str, places: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def _convert(key: str, value: object, annotation: Any) -> Any:
    """Return `value` as the annotation wants it; a number may be written as its text."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    kinds = (annotation, *typing.get_args(annotation))
    if isinstance(value, bool) and bool not in kinds and Any not in kinds:
        value = str(value).lower()  # else pydantic takes true for 1
    lenient = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    try:
        return TypeAdapter(annotation, config=lenient).validate_python(value)
    except ValidationError as error:
        wanted = getattr(annotation, "__name__", None)
        if wanted is None or typing.get_args(annotation):
            wanted = str(annotation).replace("typing.", "").replace("collections.abc.", "")
            for python, plain in _PLAIN.items():
                wanted = wanted.replace(python, plain)
        reason = error.errors()[0]["msg"]
        one = wanted.startswith("list") and isinstance(value, str | int)
        mend = f"write {key}=[{str(value).strip('[]')}]" if one else ""
        raise ConfigError(
            key, value, f"must be {wanted.replace('None', 'null')} ({reason})", mend
        ) from None
