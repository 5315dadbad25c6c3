"""Writing files: whole or not at all, and JSON that every reader accepts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from fishr_exp.core.secrets import masked_value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    The content goes to a temporary file in the same folder, to the disk, and then to its name.

    Raises:
        OSError: If the folder cannot be written or the disk is full; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: object, indent: int | None = None) -> str:
    """Write `value` as valid JSON; NaN and infinities become strings, passwords are masked.

    What is not UTF-8 in the name of a file is escaped, and is read back as the same name.
    """
    text = json.dumps(
        _finite(masked_value("", value)), indent=indent, ensure_ascii=False, allow_nan=False
    )
    return text.encode(errors="backslashreplace").decode()


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
