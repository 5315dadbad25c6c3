"""The exception for everything that this package refuses to do."""

from __future__ import annotations


class UnsupportedError(ValueError):
    """The scope, engine, network, loss or another argument is not supported.

    Raised by this package only. Whatever a network, a loss or another function of the caller
    raises passes through unchanged, `ValueError` included.
    """
