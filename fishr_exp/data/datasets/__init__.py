"""The datasets, one file for each family; `domains_of` is for datasets of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fishr_exp.data.datasets.torch_dataset import domains_of

__all__ = ["domains_of"]


def __getattr__(name: str) -> Any:
    """Import `domains_of` when it is needed: it imports torch, which `fishr-data list` does not."""
    if name != "domains_of":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fishr_exp.data.datasets.torch_dataset import domains_of

    return domains_of
