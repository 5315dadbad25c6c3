"""What a run is: the settings that decide what it computes, in one normal form.

Folder names, the comparison of a checkpoint or a folder with what is asked for, the digest of a
protocol, the seeds that a protocol derives and the rows of a table all use this form. So a run
stays the same run when its configuration is spelled differently (1 or 1.0, the domain 0 or "0"),
when a class of ours moves, and when a later version has more keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fishr_exp.core.files import expanded
from fishr_exp.runs.keys import KEYS

TARGET = "_target_"
# In a group's node: its keys that came later, with the values that compute what was computed
# before them. Older runs, which lack the keys, and runs at these values are the same runs.
NEUTRAL = "_neutral_"

# Where the parts of the first version lie today. The keys are their ids: the names that they had
# when the first runs were recorded. A part that is not here is called by its own place.
PLACES: dict[str, str] = {
    "fishr_exp.data.digits.colored_digits": "fishr_exp.data.datasets.digits.colored_digits",
    "fishr_exp.data.digits.rotated_digits": "fishr_exp.data.datasets.digits.rotated_digits",
    "fishr_exp.data.image_folder.image_folder": "fishr_exp.data.datasets.image_folder.image_folder",
    "fishr_exp.data.mnist.colored_mnist": "fishr_exp.data.datasets.mnist.colored_mnist",
    "fishr_exp.data.mnist.colored_mnist_domainbed": "fishr_exp.data.datasets.mnist.colored_mnist_domainbed",  # noqa: E501
    "fishr_exp.data.mnist.rotated_mnist": "fishr_exp.data.datasets.mnist.rotated_mnist",
    "fishr_exp.data.path_lists.path_lists": "fishr_exp.data.datasets.path_lists.path_lists",
    "fishr_exp.data.spawrious.spawrious": "fishr_exp.data.datasets.spawrious.spawrious",
    "fishr_exp.data.datasets.wilds": "fishr_exp.data.datasets.wilds.wilds",
    "fishr_exp.tracking.mlflow_mirror.MlflowMirror": "fishr_exp.tracking.mlflow.MlflowMirror",
    "fishr_exp.training.observer.Observer": "fishr_exp.training.early_stopping.EarlyStopping",
}
_IDS = {place: name for name, place in PLACES.items()}

# Of a method from outside, the values that its folder's name may have, and how long they may be.
_IN_A_NAME = re.compile(r"[\w.+-]{1,24}")
_LONGEST = 100

# Settings that name domains: the domain "0" may be written as a number.
_DOMAIN_NAMES = ("test_domains", "dataset.domains")
# Settings that are a folder or a file: data, data/ and ./data are one, ~ is home.
_PATHS = ("dataset.root", "model.weights_file")
# Settings that are a list, or its only item: {a: a.txt} and {a: [a.txt]} are one.
_LISTS = "dataset.lists."
_METRICS = "metrics"


def id_of(target: str) -> str:
    """Return the id of the part that a `_target_` names, which stays when its code moves."""
    return _IDS.get(target, target)


def place_of(target: str) -> str:
    """Return the dotted path at which the part lies that a `_target_` names, by path or by id."""
    return PLACES.get(target, target)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested configuration into one level: `{"trainer": {"gamma": 1}}` to `trainer.gamma`.

    Lists stay values; an empty mapping is the value `{}`. `_neutral_` is left out.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name == NEUTRAL:
            continue
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings that decide what a run computes, in normal form.

    Left out are the keys that only say where and how a run is computed, and keys that came later
    and are at their neutral values.
    """
    neutral = {**_of_the_root(), **_declared(config)}
    values = {key: normal(key, value) for key, value in flatten(config).items()}
    return {
        key: value
        for key, value in values.items()
        if not is_bookkeeping(key)
        and (key not in neutral or not _same(value, normal(key, neutral[key])))
    }


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that distinguish results: `settings`, but not where the data lie.

    The folder of the data is part of a run's name, which stays as it is; of images that have no
    name of their own, it is the name. What is measured of a result does not change it.
    """
    values = {**_of_the_root(), **settings(config)}
    values.pop(_METRICS, None)
    if values.get("dataset.name") != "image_folder":
        values.pop("dataset.root", None)
    return values


def folder_name(config: Mapping[str, Any], trainer: str) -> str:
    """Name a run's folder by what the run is: method, gamma, seed, digest of all its settings.

    The name of a method from outside this package has its class, if the option does not say it,
    and its other settings, too. A folder that an earlier version named otherwise keeps its name.

    Args:
        config: The resolved configuration.
        trainer: What the trainer is called, the option of its group.
    """
    return name_in(expanded(str(config.get("output_dir"))), folder_names(config, trainer))


def folder_names(config: Mapping[str, Any], trainer: str) -> list[str]:
    """Return the names that a run's folder may have; the last one is today's.

    Args:
        config: The resolved configuration.
        trainer: What the trainer is called, the option of its group.
    """
    values = settings(config)
    gamma = values.get("trainer.gamma")
    first = [trainer, _short("gamma", gamma)]
    seed = _short("seed", values.get("seed"))
    own = _own_parts(values, trainer)
    name = _joined([first[0], *own[:1], *first[1:], *own[1:], seed, digest(values)])
    typed = flatten(config)
    spelled = {key: typed[key] if key in _PATHS else value for key, value in values.items()}
    # Of earlier versions, which took paths as they were typed.
    before = [_joined([*first, seed, digest(of)]) for of in (spelled, values)]
    return [*(known for known in before if known != name), name]


def name_in(runs: Path, names: Sequence[str]) -> str:
    """Return the first name whose folder holds a run, or the last one.

    Args:
        runs: The folder of all runs.
        names: What `folder_names` returns.
    """
    there = (known for known in names[:-1] if (runs / known / "config.json").exists())
    return next(there, names[-1])


def _short(name: str, value: Any) -> str:
    """Return what a folder's name says of a number; nothing of what is too long, or no number."""
    return f"{name}{value}" if _IN_A_NAME.fullmatch(str(value)) and value is not None else ""


def _joined(parts: Iterable[str]) -> str:
    return "-".join(part.replace("/", "_") for part in parts if part)


def _own_parts(values: Mapping[str, Any], trainer: str) -> list[str]:
    """Return what names a method from outside: its class and its settings, as far as they fit."""
    target = str(values.get(f"trainer.{TARGET}", ""))
    if not target or target.startswith("fishr_exp."):
        return []
    name = target.rpartition(".")[2]
    said = "".join(filter(str.isalnum, trainer.lower()))
    parts = ["" if "".join(filter(str.isalnum, name.lower())) in said else name]
    for key, value in values.items():
        group, _, own = key.partition(".")
        text = value if isinstance(value, str) else json.dumps(value)
        if group != "trainer" or own in (TARGET, "gamma") or not _IN_A_NAME.fullmatch(text):
            continue
        if len(_joined([*parts, f"{own}{text}"])) <= _LONGEST:
            parts.append(f"{own}{text}")
    return parts


def digest(values: object) -> str:
    """Return eight characters that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Name the settings in which two runs differ, the first three with their values; or nothing.

    Args:
        there: Flat settings of what was found, also by an earlier version.
        here: Flat settings of what is asked for.
    """
    differing = [key for key in {**there, **here} if _written(there, key) != _written(here, key)]
    shown = [f"{k} ({_written(there, k)} there, {_written(here, k)} here)" for k in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return ", ".join(shown) + more


def normal(key: str, value: Any) -> Any:
    """Return a setting's value in normal form.

    A whole number is an int, also inside lists and mappings; a domain's name is text; a `_target_`
    is an id; a path has no superfluous parts; a single list of images is a list of one; metrics
    have no order.
    """
    if key.startswith(_LISTS) and isinstance(value, str):
        return [value]
    if key in _PATHS and isinstance(value, str) and value:
        return os.path.normpath(os.path.expanduser(value))
    value = _whole_as_int(value)
    if key == _METRICS and isinstance(value, list):
        return sorted(set(map(str, value)))
    if key in _DOMAIN_NAMES and isinstance(value, list):
        return [str(name) for name in value]
    if key.rpartition(".")[2] == TARGET and isinstance(value, str):
        return id_of(value)
    return value


def _whole_as_int(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _whole_as_int(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_as_int(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return int(value) if whole else value  # 1e300 stays as short as it is


def _of_the_root() -> dict[str, Any]:
    return {name: key.neutral for name, key in KEYS.items() if key.came_later}


def _declared(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the neutral values that the nodes of a configuration declare, by flat key."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name == NEUTRAL:
            found |= flatten(value, prefix)
        elif isinstance(value, Mapping):
            found |= _declared(value, f"{prefix}{name}.")
    return found


def is_bookkeeping(key: str) -> bool:
    """Whether a key only says where and how a run is computed, not what it computes."""
    return any(name in KEYS and KEYS[name].bookkeeping for name in (key, key.partition(".")[0]))


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _written(values: Mapping[str, Any], key: str) -> str:
    # As JSON: absent, null and "null" are three different things.
    if key not in values:
        return "absent"
    return json.dumps(normal(key, values[key]), ensure_ascii=False)
