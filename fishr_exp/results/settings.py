"""The settings of a run as flat keys, apart from what only says where and how it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# These change where a run is written and how fast it goes, not what it computes.
BOOKKEEPING = frozenset(
    {
        "resume",
        "retry_failed",
        "checkpoint_every",
        "allow_targets",
        "output_dir",
        "sweep_name",
        "num_workers",
        "device",
        "tracker",
        "diagnostics",
        "dataset.download",
        "dataset.cache",
        "protocol.departures",  # follows from the other settings, as does the digest
        "protocol.digest",
    }
)

# Keys that came later, with the values that compute what was computed before them: left out at
# these, so that older runs keep their names and are found again.
NEUTRAL = {"precision": "fp32", "channels_last": False, "compile": False}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested configuration into one level: `{"trainer": {"gamma": 1}}` to `trainer.gamma`.

    Lists stay values; an empty mapping is the value `{}`.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings that decide what a run computes.

    All keys but `BOOKKEEPING`, and but those that are at their value of `NEUTRAL`.
    """
    return {
        key: value
        for key, value in flatten(config).items()
        if not _is_bookkeeping(key) and (key not in NEUTRAL or value != NEUTRAL[key])
    }


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that tell results apart: `settings`, but not where the data lie.

    A whole number is an int, so that 1 and 1.0 are one setting. The folder is part of a run's name,
    which stays as it is; of images that have no name of their own, it is the name.
    """
    values = {**NEUTRAL, **settings(config)}
    if values.get("dataset.name") != "image_folder":
        values.pop("dataset.root", None)
    return {key: _whole_as_int(value) for key, value in values.items()}


def _whole_as_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_bookkeeping(key: str) -> bool:
    return key in BOOKKEEPING or key.split(".")[0] in BOOKKEEPING


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Name the settings in which two runs differ, the first three with their values; or nothing.

    Args:
        there: Flat settings of what was found.
        here: Flat settings of what is asked for.
    """
    differing = [key for key in {**there, **here} if _written(there, key) != _written(here, key)]
    shown = [f"{k} ({_written(there, k)} there, {_written(here, k)} here)" for k in differing[:3]]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return ", ".join(shown) + more


def _written(values: Mapping[str, Any], key: str) -> str:
    # As JSON: absent, null and "null" are three different things; 1 and 1.0 are one.
    if key not in values:
        return "absent"
    value = values[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)
