"""What a run took over from another one: shared.json, and a part of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishr_exp.runs.content import UnreadableError, count, finite, read_object, take, text
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.names import SHARED


@dataclass(frozen=True)
class Shared:
    """First steps that another run of the sweep trained."""

    run: str  # the name of its folder
    steps: int
    seconds: float  # that they took

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Shared:
        """Read it.

        Raises:
            ValueError: If a key is missing, or its value is of another type.
        """
        return cls(
            take(written, "run", text),
            take(written, "steps", count),
            take(written, "seconds", finite),
        )

    @classmethod
    def read(cls, folder: Path) -> Shared | None:
        """Read what the run in `folder` took over; None if that is nothing.

        Raises:
            UnreadableError: If the file does not hold it.
        """
        path = folder / SHARED
        if not path.exists():
            return None
        written = read_object(path)
        try:
            return cls.from_json(written)
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: {error}") from error

    def write(self, folder: Path) -> None:
        """Write it into the folder of the run that took it over.

        Raises:
            OSError: If it cannot be written.
        """
        write_atomically(folder / SHARED, to_json(vars(self)) + "\n")
