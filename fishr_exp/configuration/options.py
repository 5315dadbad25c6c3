"""The options of the package: where they are, and which parts they build."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import TARGET, place_of

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, and faster where it is there


def conf_dir() -> Path:
    """Return the folder of the configuration: in the installed package, or beside it."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def search_path(config_dir: str | None) -> list[str]:
    """Return the override by which Hydra finds the options in a folder; none without a folder.

    Raises:
        ConfigError: If it is not a folder.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        hint = "pass the folder that contains GROUP/NAME.yaml"
        raise ConfigError("--config-dir", config_dir, "is not a folder", hint)
    return [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"]


@functools.cache
def registered(group: str) -> tuple[str, ...]:
    """Return the places of the parts that a group builds: the targets of its options."""
    found = set()
    for path in (conf_dir() / group).glob("*.yaml"):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER) or {}
        node = content.get(group) or content  # an option may also set keys of others
        if TARGET in node:
            found.add(place_of(str(node[TARGET])))
    return tuple(sorted(found))
