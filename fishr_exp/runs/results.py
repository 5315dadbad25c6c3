"""Reads the result of a run that is done, and checks that it is of its folder's run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fishr_exp.runs.content import UnreadableError, read_object
from fishr_exp.runs.methods import misfit
from fishr_exp.runs.names import CONFIG, RECORDS, RESULT
from fishr_exp.runs.records import Result, parse_evaluations


def read_result(folder: Path, config: Mapping[str, Any]) -> Result:
    """Read the result in a folder, and check it as `checked_result` does.

    Raises:
        UnreadableError: If there is none, or as `checked_result`.
    """
    path = folder / RESULT
    if not path.exists():
        raise UnreadableError.of(path, "is missing")
    return checked_result(folder, read_object(path), config)


def checked_result(folder: Path, written: Mapping[str, Any], config: Mapping[str, Any]) -> Result:
    """Return the result that was read from a folder, of its type.

    Args:
        folder: The run's folder, whose records are read too.
        written: What its file of the result holds.
        config: What its file of the configuration holds.

    Raises:
        UnreadableError: If it is no result, or not of this configuration and these records.
    """
    try:
        result = Result.from_json(written)
        if unlike := misfit(config, result.outline):
            unlike = unlike.replace(" here)", f" in {CONFIG})")
            raise ValueError(f"it is of a run with other settings: {unlike}")
    except ValueError as error:
        hint = "remove it to evaluate its last checkpoint again, or pass resume=false"
        raise UnreadableError.of(folder / RESULT, f"is damaged: {error}", hint) from error
    path, last = folder / RECORDS, result.last.get("step")
    records = parse_evaluations(path) if path.exists() else []
    ended = records[-1]["step"] if records else 0
    if last is not None and last != ended:
        raise UnreadableError.of(path, f"ends at step {ended}, and the run at step {last}")
    return result
