"""Selection of the parameters whose gradient variance is computed."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from .errors import UnsupportedError


def select_parameters(model: nn.Module, scope: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """Select the trainable parameters that `scope` names.

    A pattern selects a parameter if it matches its full name (`*`, `?` and `[...]` as in file
    names), or matches a module that contains it: `"classifier"` selects `classifier.weight` and
    `classifier.bias`.

    Args:
        model: The model.
        scope: `"all"`, one pattern, or several.

    Returns:
        Parameters by full name, in the model's order; a shared parameter appears once, under the
        first of its selected names. Frozen parameters have no gradient and are left out.

    Raises:
        UnsupportedError: If there is no pattern, or one selects no trainable parameter.
    """
    patterns = [scope] if isinstance(scope, str) else list(scope)
    if not patterns:
        raise UnsupportedError(f"scope={scope!r} names no parameter")
    every = list(model.named_parameters(remove_duplicate=False))
    names = [name for name, parameter in every if parameter.requires_grad]
    selected_names = set(names) if patterns == ["all"] else set()
    for pattern in patterns if not selected_names else []:
        found = {name for name in names if _matches(name, pattern)}
        if not found:
            raise UnsupportedError(
                f"scope={pattern!r} selects no trainable parameter; the model has {_brief(names)}"
            )
        selected_names |= found
    if not selected_names:
        raise UnsupportedError(f"scope={scope!r}: the model has no trainable parameter")
    selected: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in every:
        if name in selected_names and id(parameter) not in seen:
            seen.add(id(parameter))
            selected[name] = parameter
    return selected


@functools.cache
def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return any(fnmatchcase(prefix, pattern) for prefix in prefixes)


_MOST = 8  # names in a message


def _brief(names: list[str]) -> str:
    if not names:
        return "none"
    if len(names) <= _MOST:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST - 2])}, ... ({len(names)}), {', '.join(names[-2:])}"
