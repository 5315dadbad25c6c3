"""Errors that a person can act on: each names the key, its value, what is allowed, and the hint."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in what the user asked for; nothing was computed or lost.

    Args:
        key: The configuration key, as typed on the command line (`trainer.gamma`).
        value: What was given.
        allowed: What is wrong with it, and what is allowed.
        hint: What to do about it.
    """

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        super().__init__(key, value, allowed, hint)  # all arguments, so that it can be pickled
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        given = f"{self.key}={value}: {self.allowed}"
        return f"{given}; {self.hint}" if self.hint else given


class TrainingError(RuntimeError):
    """A run that cannot go on; what it had recorded stays, and the message says where it is."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop, and its checkpoint is written.

    Args:
        signal: The signal's number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class UnfinishedError(RuntimeError):
    """A run of a sweep has no result yet; the same command goes on with it.

    Args:
        message: What happened.
        status: The exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)  # all arguments, so that it can be pickled
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message
