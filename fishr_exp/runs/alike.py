"""What many runs have in common, worked out and kept once.

The runs of a sweep have nearly all of their configuration in common. Equal parts of it, as they are
written, are one object here, with its settings in normal form.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from fishr_exp.runs.identity import NEUTRAL, compared

T = TypeVar("T", bound=Hashable)


class Alike:
    """Parts of configurations, and other values, that several runs may have."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], tuple[str, Any, dict[str, Any]]] = {}
        self._values: dict[Any, Any] = {}
        self._absent = compared({})  # keys that older runs lack, with their neutral values

    def one(self, value: T) -> T:
        """Return the first value equal to this one, of the same type."""
        found: T = self._values.setdefault((type(value), value), value)
        return found

    def mapping(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """Return the first mapping that has these items in this order."""
        found: Mapping[str, str] = self._values.setdefault(tuple(values.items()), values)
        return found

    def config(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a configuration whose parts are those met before, and its `compared` settings.

        Raises:
            AttributeError, TypeError, ValueError: If the configuration is damaged.
        """
        # Neutral values at the root may speak of any part, and a part's of a root key with a dot.
        if NEUTRAL in config or any("." in name for name in config):
            return dict(config), compared(config)
        kept: dict[str, Any] = {}
        settings = dict(self._absent)
        for name, value in config.items():
            key = name, repr(value)  # 1, 1.0 and "1" are written differently
            found = self._parts.get(key)
            if found is None:
                found = self._parts[key] = self.one(name), value, _settings_of(name, value)
            kept[found[0]] = found[1]
            settings |= found[2]
        return kept, settings


def _settings_of(name: str, value: Any) -> dict[str, Any]:
    """Return the settings of one part: what it is called and what its keys begin with."""
    own = compared({name: value})
    return {key: of for key, of in own.items() if key == name or key.startswith(f"{name}.")}
