"""PyTorch's optimizers, without the import of its compiler, which takes longer than a short run."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"  # the compiler's front end


@contextlib.contextmanager
def compiler_not_imported() -> Iterator[None]:
    """Let calls of a `torch.optim.Optimizer` not import `torch._dynamo`, unless they need it.

    Its methods import the module only to tell the compiler not to compile them, which has no
    effect where nothing is compiled. Within this context such an import finds a stand-in, on
    which these two calls do nothing; any other use of it imports the module itself. Where it is
    imported already, as with `compile=true`, the context has no effect. Nothing of it is left
    afterwards.

    Use it around such calls only: all threads of the process find the stand-in.
    """
    stand_in = _StandIn(_NAME)
    if sys.modules.setdefault(_NAME, stand_in) is not stand_in:
        yield
        return
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """What is found in place of the module, and has two of its functions."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._asked: list[Callable[..., Any]] = []

    def graph_break(self, *_: Any, **__: Any) -> None:
        """End a compiled graph here: there is none."""

    def disable(self, function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
        """Return a function that is not compiled: the function itself, as nothing is."""
        if function is None:  # as a decorator, on which the module itself decides
            return self.__getattr__("disable")(*_, **__)
        self._asked.append(function)
        return function

    def leave(self) -> None:
        """Let the next import find the module itself, which is asked everything again."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        for function in self._asked:  # each keeps the answer as an attribute
            for name in [key for key, value in vars(function).items() if value is function]:
                vars(function).pop(name, None)

    def __getattr__(self, name: str) -> Any:
        """Import the module, which is asked for more than these."""
        self.leave()
        return getattr(importlib.import_module(_NAME), name)
