"""A table of a run's numbers, as CSV, and what is to be said of the run beside it, as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.runs.content import read_object
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import is_bookkeeping
from fishr_exp.runs.names import METRICS, SUMMARY
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import End, Mirror, Point
from fishr_exp.tracking.places import IDENTITY, place_of_run

_FIRST = ("step", "time")  # the columns before the numbers


class CsvMirror(Mirror):
    """Write a run's numbers to a table with one row per evaluation, and one column per number.

    `metrics.csv` is in the run folder, `metrics.json` beside it: the settings, the tags of the
    sweep, the status, the result and the error. With a directory they are `DIRECTORY/RUN.csv` and
    `DIRECTORY/RUN.json`. Both are replaced as a whole, so a reader never finds half a row.

    Args:
        folder: The run folder.
        directory: Where the tables of all runs go; None: into the folder of each run.
        sweep: What the runs of a sweep share, in the JSON file.

    Raises:
        ConfigError: If `directory` is a file.
    """

    name: ClassVar[str] = "CSV"

    def __init__(self, folder: RunFolder, directory: str | None, sweep: str) -> None:
        self._directory = expanded(directory).absolute() if directory else None
        if self._directory and self._directory.exists() and not self._directory.is_dir():
            reason, hint = "is not a folder", "name a folder for the tables"
            raise ConfigError("tracker.directory", directory, reason, hint)
        place = self._directory or (folder.path / METRICS).absolute()
        given = str(self._directory) if self._directory else None
        super().__init__(folder, str(place), directory=given, sweep=sweep)
        self.sweep = sweep
        self.table = folder.path / METRICS
        self._summary = folder.path / SUMMARY

    def holds_run(self, run_id: str) -> bool:
        """Whether the table is there."""
        self._set_place(run_id)
        return self.table.exists()

    def connect(self) -> None:
        """There is nothing to reach."""

    def open_run(self) -> str:
        """Take the run's own place; in a directory, another run may have its name."""
        known = self.run_id
        if self._directory:
            directory = self._directory
            known = place_of_run(
                self.folder,
                self.identity,
                lambda name: directory / f"{name}.json",
                lambda name: (directory / f"{name}.csv").exists(),
                known,
            )
        self._set_place(known)
        if not self.table.exists():
            self._write([*_FIRST], [])
        return known or self.folder.path.name

    def send_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and what is only bookkeeping as tags; the run continues."""
        about = {
            IDENTITY: self.identity,
            "folder": str(self.folder.path),
            "status": "RUNNING",
            "sweep": self.sweep,
            "settings": {k: value for k, value in settings.items() if not is_bookkeeping(k)},
            "tags": {k: value for k, value in settings.items() if is_bookkeeping(k)},
            "started": self.started,
        }
        write_atomically(self._summary, to_json(about, indent=2) + "\n")

    def last_step(self) -> int:
        """Return the step of the last row."""
        _, rows = self._read()
        return max((int(row["step"]) for row in rows), default=-1)

    def send_records(self, points: Sequence[Point]) -> None:
        """Add rows, and columns where a number is new."""
        columns, rows = self._read()
        for point in points:
            row = {"step": point.step, "time": point.time, **point.numbers}
            rows.append({name: str(value) for name, value in row.items()})
        columns = [*dict.fromkeys([*columns, *(name for row in rows for name in row)])]
        self._write(columns, rows)

    def send_end(self, end: End) -> None:
        """Write how the run ended, its error and the numbers of its result."""
        result = {"step": end.result.step, **end.result.numbers} if end.result else None
        about = {**read_object(self._summary), "status": end.status, "ended": end.time}
        about |= {"error": end.error, "result": result}
        write_atomically(self._summary, to_json(about, indent=2) + "\n")

    def announcement(self) -> str:
        """Say where the tables are, if that is not in the run folders."""
        return f"the tables of the runs are in {self._directory}" if self._directory else ""

    def _set_place(self, name: str) -> None:
        if self._directory:
            self.table = self._directory / f"{name}.csv"
            self._summary = self._directory / f"{name}.json"

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns and the rows that are there; a damaged table is made again."""
        with self.table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{name: row[name] or "" for name in row if name} for row in reader]
            columns = [*(reader.fieldnames or ())]
        if columns[: len(_FIRST)] != [*_FIRST] or not all(r["step"].isdigit() for r in rows):
            return [*_FIRST], []
        return columns, rows

    def _write(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.table, text.getvalue())
