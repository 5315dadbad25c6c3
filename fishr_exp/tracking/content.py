"""What is sent to a tracker: numbers by their names, and how a run ended."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishr_exp.core.secrets import masked, masked_value
from fishr_exp.runs.content import read_object, several, take, text
from fishr_exp.runs.files import to_json
from fishr_exp.runs.records import Evaluation, Result
from fishr_exp.runs.run_folder import CONFIG, ENVIRONMENT, RESULT, RunFolder
from fishr_exp.tracking.times import ended_at, written

_OF_EPOCHS = ("epoch", "learning_rate", "seconds_per_step", "seconds_waiting_per_step")


@dataclass(frozen=True)
class Point:
    """Numbers by their names, and the step that they belong to.

    Attributes:
        step: Steps before it.
        time: When its record was written, in seconds; the same whenever it is sent.
        numbers: The values, by their names.
    """

    step: int
    time: float
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        status: `FINISHED`, `FAILED` or `KILLED`.
        time: When it ended, in seconds; the same whenever it is sent.
        error: Why it failed; None if it did not.
        result: The numbers of the selected checkpoint; None if there is none.
        files: The files to keep with the run: configuration, environment, result.
    """

    status: str
    time: float
    error: str | None
    result: Point | None
    files: Sequence[Path]


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by the names that trackers show."""
    evaluation = Evaluation.from_json(record)
    found = {
        **evaluation.numbers(),
        **{key: record[key] for key in _OF_EPOCHS if key in record},
        **{f"diagnostics/{key}": value for key, value in (evaluation.diagnostics or {}).items()},
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def point_of(record: Mapping[str, Any]) -> Point:
    """Return a record as it is sent."""
    return Point(record["step"], written(record), numbers(record))


@contextlib.contextmanager
def end_of(folder: RunFolder, status: str, started: float) -> Iterator[End]:
    """Give how the run of a folder ended; its files can be read in the block.

    Earlier versions recorded passwords. Of a file that holds one, a masked copy is given.

    Args:
        folder: The run folder.
        status: `FINISHED`, `FAILED` or `KILLED`.
        started: When the run began, in seconds.
    """
    result, records = folder.result(), folder.records()
    error = selected = None
    if result and result["status"] == "failed":
        error = masked(str(result.get("error", "")))
    elif result:
        last = written(records[-1]) if records else 0.0
        selected = Point(result["selected"]["step"], last, Result.from_json(result).numbers())
    ended = ended_at(records, result or {}, started)
    paths = [folder.path / name for name in (CONFIG, ENVIRONMENT, RESULT)]
    with tempfile.TemporaryDirectory() as copies:
        files = [_shareable(path, Path(copies)) for path in paths if path.exists()]
        yield End(status, ended, error, selected, files)


def origin(folder: Path) -> tuple[str, str, str]:
    """Return who made the run of a folder, by which command, and at which commit.

    Each may be empty. It is the same wherever the run is sent from.
    """
    try:
        made_on = read_object(folder / ENVIRONMENT)
        command = take(made_on, "command", several(text), ["fishr-exp"])
    except ValueError:  # there is none, or it is damaged
        made_on, command = {}, ["fishr-exp"]
    try:
        user = (folder / CONFIG).owner()
    except (OSError, KeyError, NotImplementedError):  # a user without a name; Windows
        user = ""
    words = masked(" ".join([Path(command[0]).name, *command[1:]]))
    return user, words, str(made_on.get("git_commit") or "")


def _shareable(path: Path, copies: Path) -> Path:
    """Return a file, or a copy of it without passwords."""
    there = path.read_text()
    try:
        content = json.loads(there)
        shown = masked_value("", content)
        shared = there if shown == content else to_json(shown, indent=2) + "\n"
    except ValueError:  # not JSON
        shared = masked(there)
    if shared == there:
        return path
    copy = copies / path.name
    copy.write_text(shared)
    return copy
