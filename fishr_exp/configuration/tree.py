"""A configuration as a tree for people, as `print_config=true` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fishr_exp.core.secrets import masked_value
from fishr_exp.runs.identity import NEUTRAL


def tree(config: Mapping[str, Any]) -> Iterator[str]:
    """Draw a nested configuration, a line for each key; what is secret is masked.

    Args:
        config: The configuration, resolved.
    """
    shown = {key: value for key, value in config.items() if key != NEUTRAL}
    for number, (key, value) in enumerate(shown.items(), start=1):
        last = number == len(shown)
        branch, below = ("└── ", "    ") if last else ("├── ", "│   ")
        if isinstance(value, Mapping) and value:
            yield f"{branch}{key}"
            yield from (below + line for line in tree(value))
        else:
            yield f"{branch}{key}: {_written(masked_value(str(key), value))}"


def _written(value: object) -> str:
    """Write a value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)
