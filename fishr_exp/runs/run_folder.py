"""The run folder, which is the truth about a run: its files, written so that a crash spoils none.

    config.json        the resolved configuration
    data.json          of each domain the number of samples, and a digest of names and labels
    model.json         what the network was built for, see `facts.py`
    environment.json   versions, git commit, device, processor, command line
    records.jsonl      one line an evaluation
    shared.json        of a run that took over its first steps: from which run, see `shared.py`
    result.json        what came out, or the error
    tracking.json      written by the tracking room
    metrics.csv        with tracker=csv, as is metrics.json: the records as a table
    checkpoints/       written by the training room
    done               empty; written last

Numbers that JSON does not know are written as the strings "NaN", "Infinity" and "-Infinity",
which `float` reads. What the files hold is checked where they are read: see `content.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from fishr_exp.core.errors import ConfigError, TakenError, TrainingError
from fishr_exp.runs.content import UnreadableError, mapping, read_bytes, read_object, text
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.identity import differences, settings
from fishr_exp.runs.names import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    DONE,
    ENVIRONMENT,
    EVALUATIONS,
    FILES,
    LOCK,
    OF_CHECKPOINTS,
    OF_EVALUATIONS,
    RECORDS,
    RESULT,
    TRACKING,
    UNFINISHED,
    is_new,
    is_of_a_run,
    named,
    remove_named,
)
from fishr_exp.runs.records import parse_evaluations
from fishr_exp.runs.results import checked_result

__all__ = [
    "CHECKPOINTS", "CONFIG", "DATA", "DONE", "ENVIRONMENT", "LOCK", "RECORDS", "RESULT", "TRACKING",
    "Record", "RunFolder", "State",
]  # fmt: skip

State = Literal["planned", "running", "failed", "done"]
Record = dict[str, Any]


class RunFolder:
    """One run's folder.

    `acquire`, `open` and `clear` take the folder's lock, `close` gives it back, as does leaving a
    `with`.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None
        self._cleared = False  # it was a run's; what is left in it may be anything

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints; it need not exist."""
        return self.path / CHECKPOINTS

    @property
    def state(self) -> State:
        """How far the run came, as its files say: one of four, at whatever moment it was stopped.

        A run that is `running` with no process behind it was stopped; the next one resumes it.
        """
        if (self.path / DONE).exists():
            return "done"
        result = self.path / RESULT
        # A result without the marker may also be a good one, cut off in the last moment.
        if result.exists() and read_object(result).get("status") == "failed":
            return "failed"
        return "running" if (self.path / CONFIG).exists() else "planned"

    def open(self, config: Mapping[str, Any]) -> None:
        """Take the folder for a run of `config`, to start it or to resume it.

        The mark of an earlier failure is removed; its records stay.

        Raises:
            ConfigError: If the folder cannot be written, another process has it, or it holds a
                run with other settings (those that do not matter to the result may differ).
        """
        self.acquire()
        try:
            with self._explaining_os_errors():
                self._start_or_go_on(json.loads(to_json(config)))
        except ConfigError:
            self.close()
            raise

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Record what the run runs on."""
        write_atomically(self.path / ENVIRONMENT, to_json(environment, indent=2) + "\n")

    def environment(self) -> Record:
        """Read what the run ran on; empty if there is none."""
        path = self.path / ENVIRONMENT
        return read_object(path) if path.exists() else {}

    def write_data(self, data: Mapping[str, str]) -> None:
        """Record what the data are, by domain."""
        write_atomically(self.path / DATA, to_json(data, indent=2) + "\n")

    def data(self) -> dict[str, str] | None:
        """Read what the data are; None in a folder of an earlier version, or of no run yet.

        Raises:
            UnreadableError: If the file does not hold them.
        """
        path = self.path / DATA
        if not path.exists():
            return None
        try:
            return mapping(text)(read_object(path), "data")
        except UnreadableError:
            raise
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: {error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; it is on the disk when this returns."""
        with (self.path / RECORDS).open("ab") as file:
            file.write((to_json(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[Record]:
        """Read all records; a last line that was cut off is left out.

        Raises:
            UnreadableError: If a line is not a record, or the steps do not grow.
        """
        path = self.path / RECORDS
        return parse_evaluations(path) if path.exists() else []

    def config(self) -> Record:
        """Read the configuration.

        Raises:
            UnreadableError: If there is none.
        """
        return read_object(self.path / CONFIG)

    def result(self) -> Record | None:
        """Read the result, or None where there is none yet.

        Raises:
            UnreadableError: If it is not one, or not of this folder's configuration and records.
        """
        path = self.path / RESULT
        if not path.exists():
            return None
        written = read_object(path)
        if written.get("status") != "failed":
            checked_result(self.path, written, self.config())
        return written

    def result_of_done(self) -> Record:
        """Read the result of a run that is done.

        Raises:
            UnreadableError: If there is none, or as `result`.
        """
        result = self.result()
        if result is None:
            raise UnreadableError.of(self.path / RESULT, "is missing")
        return result

    def keep_until(self, step: int) -> None:
        """Drop the records of later steps, which a continued run writes again."""
        self.write_records([record for record in self.records() if record["step"] <= step])

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, and then the marker that the run is done."""
        self._write_result({**result, "status": "done"})
        write_atomically(self.path / DONE, "")

    def fail(self, error: str, result: Mapping[str, Any] | None = None) -> None:
        """Write that the run failed and why, with what is known of the result."""
        self._write_result({**(result or {}), "status": "failed", "error": error})

    def clear(self) -> None:
        """Remove the files of an earlier run, to start from scratch; other files stay.

        Raises:
            ConfigError: If another process has the folder, or it cannot be written.
        """
        if not self.path.exists():
            return
        self.acquire()
        for name in (*FILES, CONFIG):
            if (self.path / name).is_dir():
                hint = "move it away, or choose another output_dir"
                raise UnreadableError.of(self.path / name, "is a folder, not a file", hint)
        with self._explaining_os_errors():
            # The marker goes first: whatever stops this, a half-cleared run is not taken for done.
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            remove_named(self.checkpoints, OF_CHECKPOINTS)
            for place in (self.path / EVALUATIONS).glob("*"):
                if not place.is_symlink():
                    remove_named(place, OF_EVALUATIONS)
            with contextlib.suppress(OSError):
                (self.path / EVALUATIONS).rmdir()  # stays if it holds other files
            self._sweep()
            (self.path / CONFIG).unlink(missing_ok=True)
        self._cleared = True

    def check_ours(self) -> None:
        """Refuse a folder that holds files, and no run.

        Raises:
            ConfigError: If it has files that are not a run's, and no configuration of a run.
        """
        if self._cleared or not self.path.is_dir() or is_of_a_run(self.path):
            return
        names = sorted(path.name for path in self.path.iterdir() if not is_new(path))
        if names:
            shown = next((name for name in (CONFIG, *FILES) if name in names), names[0])
            reason = f"this folder holds files that are not a run's, such as {shown}"
            raise ConfigError("output_dir", self.path, reason, "choose a new or empty folder")

    def close(self) -> None:
        """Give the folder's lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def acquire(self) -> None:
        """Take the folder's lock, unless it is ours already; `close` gives it back.

        Raises:
            ConfigError: If another process has it, or the folder cannot be written, or holds files
                that are not a run's.
        """
        if self._lock is None:
            self.check_ours()
            self.lock()

    def lock(self, patience: float = 0.2) -> None:
        """Take the lock of a folder of any files, such as the runs of a search; see `acquire`.

        Args:
            patience: Seconds to try; others may have the lock for a moment, to see if it is free.
        """
        with self._explaining_os_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            try:
                lock.acquire(timeout=patience, poll_interval=0.02)
            except Timeout:
                raise TakenError(
                    "output_dir", self.path, "another process is running in this folder",
                    "wait until it ends, or choose another output_dir",
                ) from None  # fmt: skip
            self._lock = lock

    def _start_or_go_on(self, config: Record) -> None:
        path = self.path / CONFIG
        if path.exists():
            self._compare(self.config(), config)
        self._sweep()
        self._complete_records()
        if not path.exists():
            write_atomically(path, to_json(config, indent=2) + "\n")
        if self.state == "failed":
            (self.path / RESULT).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a kill in the middle of writing left behind."""
        for folder in (self.path, self.checkpoints):
            for file in named(folder, UNFINISHED):
                file.unlink()

    def _compare(self, there: Record, here: Record) -> None:
        if differing := differences(settings(there), settings(here)):
            raise ConfigError(
                "output_dir",
                self.path,
                f"this folder holds a run with other settings: {differing}",
                "choose another output_dir, or resume=false to replace that run",
            )

    def _complete_records(self) -> None:
        path = self.path / RECORDS
        if not path.exists():
            path.touch()
        elif (content := read_bytes(path)) and not content.endswith(b"\n"):
            self.write_records(self.records())  # else the next record would join the cut-off one

    def write_records(self, records: Sequence[Record]) -> None:
        """Write all records."""
        lines = "".join(to_json(record) + "\n" for record in records)
        write_atomically(self.path / RECORDS, lines)

    def _write_result(self, result: Record) -> None:
        write_atomically(self.path / RESULT, to_json(result, indent=2) + "\n")

    @contextlib.contextmanager
    def _explaining_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = f"{self.path} cannot be written ({error.strerror})"
                raise TrainingError(f"{reason}; free space, and repeat the command") from error
            raise ConfigError(
                "output_dir",
                self.path,
                f"this folder cannot be written ({error.strerror or error})",
                "choose another output_dir",
            ) from error
