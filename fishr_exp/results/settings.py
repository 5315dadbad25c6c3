"""The settings of a run as flat keys, apart from what only says where and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# These change where a run is written and how fast it goes, not what it computes.
BOOKKEEPING = frozenset(
    {
        "resume",
        "output_dir",
        "sweep_name",
        "num_workers",
        "device",
        "tracker",
        "diagnostics",
        "dataset.download",
        "protocol.departures",  # follows from the other settings, as does the digest
        "protocol.digest",
    }
)


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
    """Return the flat settings that decide what a run computes: all keys but `BOOKKEEPING`."""
    return {key: value for key, value in flatten(config).items() if not _is_bookkeeping(key)}


def _is_bookkeeping(key: str) -> bool:
    return key in BOOKKEEPING or key.split(".")[0] in BOOKKEEPING
