"""A tracker: a text file a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import End, Mirror, Point


class Lines(Mirror):
    """Append a line for each number to a file.

    Args:
        folder: The run folder.
        directory: Where the files lie.
    """

    name = "lines"

    def __init__(self, folder: RunFolder, directory: str) -> None:
        path = Path(directory).absolute()
        super().__init__(folder, str(path), directory=str(path))
        self.path = path / f"{folder.path.name}.txt"

    def connect(self) -> None:
        """Make the directory."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def open_run(self) -> str:
        """Make the file."""
        self.path.touch()
        return self.path.name

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Nothing is kept of them."""

    def last_step(self) -> int:
        """Read the step of the last line."""
        lines = self.path.read_text().splitlines()
        return int(lines[-1].split()[0]) if lines else -1

    def send_records(self, points: Sequence[Point]) -> None:
        """Append the numbers."""
        with self.path.open("a") as file:
            for point in points:
                file.writelines(f"{point.step} {k} {v}\n" for k, v in point.numbers.items())

    def send_end(self, end: End) -> None:
        """Write the result beside it."""
        numbers = end.result.numbers if end.result else {}
        self.path.with_suffix(".end").write_text(f"{end.status} {dict(numbers)}")
