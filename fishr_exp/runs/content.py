"""Reads the JSON of a run's files: the one place where bytes from a disk become values.

A file may come from somebody else, or from a damaged disk. What is not readable, not an object, or
not of the type that its reader asks for is refused in one line, whatever it is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import require_file

T = TypeVar("T")
Check = Callable[[object, str], T]  # takes a value and what it is called; returns it, of its type

START_AGAIN = "start its run again with resume=false, or remove the folder"
_DEEPEST = 100  # levels of nesting; no file of a run has ten
_LARGEST = 2**63  # of a count, such as a step
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as they are written, since JSON has no such number
_AT_ONCE = 1 << 20  # bytes
_SHOWN = 40  # characters of a wrong value
_REQUIRED: Any = object()


class UnreadableError(ConfigError):
    """A file of a run folder that cannot be read, or does not hold what it should."""

    @classmethod
    def of(cls, path: Path, problem: str, hint: str = "") -> UnreadableError:
        """Return the error about one file, for whoever wants to run in its folder."""
        fix = hint or "restore this file, or pass resume=false to start this run from scratch"
        return cls("output_dir", path.parent, f"{path.name} {problem}", fix)


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        UnreadableError: If it is missing, is no file, or cannot be read.
    """
    try:
        require_file(path)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            return _all_of(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        elsewhere = path.exists() and not path.is_file()
        hint = "move it away, or choose another output_dir" if elsewhere else ""
        raise UnreadableError.of(path, f"cannot be read ({reason})", hint) from error


def _all_of(descriptor: int) -> bytes:
    """Return what is left in a file; with two calls of the system for a small one."""
    parts = []
    while part := os.read(descriptor, _AT_ONCE):
        parts.append(part)
    return b"".join(parts)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises:
        UnreadableError: If there is none.
    """
    content = read_bytes(path)
    try:
        return parse_object(content)
    except ValueError as error:
        raise UnreadableError.of(path, f"cannot be read ({error})") from error


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the object that is written in JSON.

    Raises:
        ValueError: If it is not JSON in UTF-8, not an object, or nested too deeply.
    """
    try:
        value = json.loads(content.decode())
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {_shown(value)}, not an object")
    if content.count(b"{") + content.count(b"[") <= _DEEPEST:  # whatever is within what
        return value
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _inner(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if type(value) is list else []


def parse_records(path: Path, begin: bytes = b"{") -> list[dict[str, Any]]:
    """Read the objects in the lines of a file; a last line that was cut off is left out.

    Args:
        path: The file.
        begin: How each line begins.

    Raises:
        UnreadableError: If the file cannot be read, or a line is not an object; it is named.
    """
    content = read_bytes(path)
    lines = content.splitlines()
    records: list[dict[str, Any]] = []
    for place, line in enumerate(lines, start=1):
        try:
            records.append(parse_object(line))
        except ValueError as error:
            if place == len(lines) and not content.endswith(b"\n") and _is_cut_off(line, begin):
                break
            raise UnreadableError.of(path, f"is damaged: line {place}: {error}") from error
    return records


def _is_cut_off(line: bytes, begin: bytes) -> bool:
    line = line.rstrip(b"\0")  # which a power failure can leave
    return line.startswith(begin) or begin.startswith(line)


# --- values of their types ---------------------------------------------------------------------


def take(written: Mapping[str, Any], key: str, check: Check[T], default: T = _REQUIRED) -> T:
    """Return the value of a key, of its type.

    Raises:
        ValueError: If it is of another type, or is missing and has no default.
    """
    if key in written:
        return check(written[key], key)
    if default is _REQUIRED:
        raise ValueError(f"lacks {key!r}")
    return default


def integer(value: object, name: str) -> int:
    """Return a whole number, such as a seed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong(value, name, "a whole number")


def count(value: object, name: str) -> int:
    """Return a whole number that is not negative, such as a step."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST:
        return value
    raise _wrong(value, name, "a whole number, 0 or more")


def number(value: object, name: str) -> float:
    """Return a number; NaN and infinities are written as text."""
    if type(value) is float:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _wrong(value, name, "a number") from error
    if value in _NOT_FINITE:
        return float(str(value))
    raise _wrong(value, name, "a number")


def finite(value: object, name: str) -> float:
    """Return a number that is finite, such as seconds."""
    found = number(value, name)
    if not math.isfinite(found):
        raise _wrong(value, name, "a finite number")
    return found


def fraction(value: object, name: str) -> float:
    """Return an accuracy, in [0, 1] or NaN."""
    if type(value) is float and 0.0 <= value <= 1.0:  # nearly all are
        return value
    found = number(value, name)
    if not (math.isnan(found) or 0 <= found <= 1):
        raise _wrong(value, name, "a fraction in [0, 1]")
    return found


def flag(value: object, name: str) -> bool:
    """Return true or false."""
    if isinstance(value, bool):
        return value
    raise _wrong(value, name, "true or false")


def text(value: object, name: str) -> str:
    """Return a text."""
    if isinstance(value, str):
        return value
    raise _wrong(value, name, "text")


def label(value: object, name: str) -> str:
    """Return what a domain is called; a number is a name, too."""
    return str(value) if type(value) is int else text(value, name)


def optional(check: Check[T]) -> Check[T | None]:
    """Return a check that lets null pass."""
    return lambda value, name: None if value is None else check(value, name)


def several(check: Check[T]) -> Check[list[T]]:
    """Return the check of a list."""

    def found(value: object, name: str) -> list[T]:
        if not isinstance(value, list):
            raise _wrong(value, name, "a list")
        return [check(item, f"{name}[{place}]") for place, item in enumerate(value)]

    return found


def mapping(check: Check[T]) -> Check[dict[str, T]]:
    """Return the check of an object with such values."""

    def found(value: object, name: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise _wrong(value, name, "an object")
        try:
            return {key: check(item, name) for key, item in value.items()}
        except ValueError:  # only what is wrong needs its name
            return {key: check(item, f"{name}.{key}") for key, item in value.items()}

    return found


def anything(value: object, name: str) -> Any:
    """Return any value."""
    del name
    return value


def _wrong(value: object, name: str, kind: str) -> ValueError:
    return ValueError(f"{name} is {_shown(value)}, not {kind}")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value, default=lambda value: type(value).__name__)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
