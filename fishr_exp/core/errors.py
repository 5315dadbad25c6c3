"""Errors that a user can act on: each gives the key, its value, what is allowed, and a hint."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fishr_exp.core.secrets import masked, masked_value

_NAMED = 5  # maximum number of names in a message
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""Escape what is not UTF-8 in a file's name: `caf\xe9`; no record or log could hold it.

    Characters that control a terminal are escaped, too, except those that end a line.
    """
    try:
        text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a surrogate that does not come from a name
        text = text.encode(errors="backslashreplace").decode()
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def some(names: Iterable[str], separator: str = ", ") -> str:
    """Join the first five names, and say how many more there are: `a, b, c, d, e and 2 more`."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return separator.join(listed[:_NAMED]) + more


class ConfigError(ValueError):
    """An error in the configuration; nothing was computed or lost.

    Args:
        key: The configuration key, as typed on the command line (`trainer.gamma`).
        value: The value that was given.
        allowed: What is wrong with it, and what is allowed.
        hint: How to fix it.
    """

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        super().__init__(key, value, allowed, hint)  # all arguments, so that it can be pickled
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint

    def __str__(self) -> str:
        value = "null" if self.value is None else masked_value(self.key, self.value)
        given = f"{self.key}={value}: {self.allowed}"
        return masked(printable(f"{given}; {self.hint}" if self.hint else given))


class TakenError(ConfigError):
    """Another process has the run folder; when it has ended, the run can be trained, or is done."""


class TrainingError(RuntimeError):
    """A run that cannot continue; its records are kept, and the message says where they are."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop, and its checkpoint is written.

    Args:
        signal: The signal's number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class SharedStepsMade(Exception):  # noqa: N818 - it is no error
    """The run has trained the steps that others share, and was asked to stop then."""


class UnfinishedError(RuntimeError):
    """A run of a sweep has no result yet; the same command continues it.

    Args:
        message: What happened.
        status: The exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)  # all arguments, so that it can be pickled
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message
