"""The plain numbers of a run, checked before anything is built."""

from __future__ import annotations

import math
import os

from fishr_exp.core.errors import ConfigError
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.checkpoint import Interval

_LARGEST = 10**12  # of a count; PyTorch's own have 64 bits


def check_counts(arguments: Arguments) -> None:
    """Refuse numbers of steps, workers and the like that are outside their range.

    Raises:
        ConfigError: If one is.
    """
    epochs, total_steps = arguments.epochs, arguments.total_steps
    if (epochs is None) == (total_steps is None):
        hint = "pass epochs=NUMBER" if epochs is None else "pass epochs=null, or total_steps=null"
        given = "null" if total_steps is None else total_steps
        reason = f"exactly one of epochs and total_steps (={given}) must be given"
        raise ConfigError("epochs", epochs, reason, hint)
    workers = max(32, 8 * (os.cpu_count() or 1))  # more only wait for one another
    for key, least, most in (
        ("epochs", 1, _LARGEST),
        ("total_steps", 1, _LARGEST),
        ("steps_per_epoch", 1, _LARGEST),
        ("evaluation_batch_size", 1, _LARGEST),
        ("limit_samples", 2, _LARGEST),
        ("profile_steps", 1, 1000),
        ("num_workers", 0, workers),
    ):
        value = getattr(arguments, key)
        if value is not None and value < least:
            raise ConfigError(key, value, f"must be {least} or more")
        if value is not None and value > most:
            reason = "is more than this machine can use" if key == "num_workers" else "is too large"
            raise ConfigError(key, value, reason, f"choose at most {most}")
    if arguments.clip_norm is not None and not 0 < arguments.clip_norm < math.inf:
        hint = "write a number, or null to leave the gradients as they are"
        raise ConfigError("clip_norm", arguments.clip_norm, "must be more than 0", hint)
    if empty := [tag for tag in arguments.tags if not tag.strip() or not tag.isprintable()]:
        raise ConfigError("tags", repr(empty[0]), "a tag is a word or some words", "leave it out")
    Interval(arguments.checkpoint_every)
