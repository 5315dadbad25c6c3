"""The words of `fishr-exp`: overrides and flags in any order, and one line for an unknown flag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from fishr_exp.core.errors import ConfigError

_HOME = re.compile(r"^([\w.+@/]+=)(~(?:/[^\"',]*)?)$")


def arranged(words: Sequence[str]) -> list[str]:
    """Put the flags, each with its value, before the overrides, as Hydra's parser wants them.

    Raises:
        ValueError: If a flag is unknown, or lacks its value.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    takes_value = {
        name for action in parser._actions if action.nargs is None for name in action.option_strings
    }
    flags, overrides = [], []
    rest = iter(words)
    for word in rest:
        if word in takes_value:
            if not (value := next(rest, "")).strip():
                _refuse(f"argument {word}: expected one argument")
            flags += [word, value]
        elif word.startswith("-"):
            flags.append(word)
        else:
            overrides.append(word)
    if "--info" in flags or "-i" in flags:  # its value is optional, and stands behind it
        return list(words)
    parser.parse_args([*flags, *overrides])
    return [*flags, *quoted(overrides)]


def quoted(overrides: Sequence[str]) -> list[str]:
    """Put paths in the home folder in quotes, which Hydra's grammar wants there.

    Raises:
        ValueError: If a word has no key.
    """
    for word in overrides:
        if not word.lstrip("+~ ").partition("=")[0].strip():
            raise ConfigError("", word.partition("=")[2], "lacks a key", "write KEY=VALUE")
    return [_HOME.sub(r'\1"\2"', word) for word in overrides]


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; fishr-exp --hydra-help lists the flags")
