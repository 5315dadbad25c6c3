"""Detection of TorchScript, over which `torch.func` silently loses second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn


def holds_scripted_code(model: nn.Module) -> bool:
    """Whether `model` visibly holds scripted or traced modules or functions.

    Seen are modules, attributes of modules, and what a `forward` method, or a Python function that
    it calls, finds by name in its file or in an enclosing function.
    """
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            return True
        named = [*vars(module).values(), type(module).forward]
        if any(_is_scripted(value, seen) for value in named):
            return True
    return False


def _is_scripted(value: Any, seen: set[int]) -> bool:
    if isinstance(value, torch.jit.ScriptFunction | torch.jit.ScriptModule):
        return True
    if not isinstance(value, FunctionType) or id(value) in seen or _is_of_torch(value):
        return False
    seen.add(id(value))
    return any(_is_scripted(found, seen) for found in _named_in(value))


def _is_of_torch(function: FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _named_in(function: FunctionType) -> Iterator[Any]:
    """Values of the global and enclosing names in a function's code."""
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield function.__globals__[name]
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name without a value yet
            continue
