"""The exception for everything that this package does not support."""

from __future__ import annotations


class UnsupportedError(ValueError):
    """The scope, engine, network, loss or another argument is not supported.

    Raised by this package only. Exceptions of the caller's network, loss or other functions pass
    through unchanged, `ValueError` included.
    """
