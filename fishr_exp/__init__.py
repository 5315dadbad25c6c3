"""fishr-exp: experiments with Fishr, invariant gradient variances across domains.

`compose`, `run`, `load_runs`, `load_records`, `load_model`, `model_card` and `draw_runs` are for
notebooks; see `fishr_exp.api`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["compose", "draw_runs", "load_model", "load_records", "load_runs", "model_card", "run"]


def __getattr__(name: str) -> Any:
    """Import a function for notebooks when it is asked for: the command line must start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
