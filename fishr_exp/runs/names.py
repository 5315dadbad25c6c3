"""The names of a run's files, and which files in a folder are a run's."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from fishr_exp.runs.content import UnreadableError, read_bytes, read_object

CONFIG, DATA, ENVIRONMENT, RECORDS, RESULT, TRACKING = (
    "config.json",
    "data.json",
    "environment.json",
    "records.jsonl",
    "result.json",
    "tracking.json",
)
SHARED, MODEL = "shared.json", "model.json"
PROFILE, TRACE = "profile.txt", "trace.json"  # with profile_steps
METRICS, SUMMARY = "metrics.csv", "metrics.json"  # written by the tracking room
CHECKPOINTS, DONE, LOCK = "checkpoints", "done", ".lock"
TRUNKS = ".trunks"  # in the folder of a sweep: steps that its runs share
# Beside the configuration; in this order they are removed.
FILES = (
    DONE, RESULT, RECORDS, SHARED, DATA, MODEL, ENVIRONMENT, TRACKING, METRICS, SUMMARY, PROFILE,
    TRACE,
)  # fmt: skip
# The files that a run names: checkpoints, as the training room does, and those being written.
OF_CHECKPOINTS = re.compile(r"best\.pt|best-\d+\.pt|step-\d+\.pt")
# What `fishr-eval` writes into a folder for each dataset, in one of the run's.
EVALUATIONS = "evaluation"
OF_EVALUATIONS = re.compile(
    r"evaluation\.(md|tex|csv|json)|evaluation-notes\.tex|(classes|confusion|calibration)\.csv"
    r"|(confusion|reliability)\.(pdf|png)"
)
_OF_HYDRA = ".hydra"  # it writes there, and a log, before the run takes the folder
UNFINISHED = re.compile(
    rf"\.({'|'.join(map(re.escape, (*FILES, CONFIG)))}|{OF_CHECKPOINTS.pattern})\.\d+\.tmp"
)


def is_of_a_run(folder: Path) -> bool:
    """Whether the configuration in a folder is a run's, of any version, as its content says.

    Of a damaged one the environment is read, which every start of a run writes.
    """
    try:
        config = read_object(folder / CONFIG)
    except UnreadableError:
        with contextlib.suppress(UnreadableError):
            versions = read_object(folder / ENVIRONMENT).get("versions")
            return isinstance(versions, dict) and "fishr-exp" in versions
        return False
    return {"seed", "test_domains"} <= {*config} and isinstance(config.get("trainer"), dict)


def named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Return what has one of these names in a folder, other folders left out."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if names.fullmatch(path.name) and not path.is_dir()]


def remove_named(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what has one of these names from a folder, and the folder if it is empty then."""
    for file in named(folder, names):
        file.unlink()
    with contextlib.suppress(OSError):  # it stays if it holds other files
        folder.rmdir()


def is_new(path: Path) -> bool:
    """Whether something may lie in a folder that a run is begun in, and is left alone."""
    if path.name == RECORDS:  # made before the configuration
        return path.is_file() and path.stat().st_size == 0
    if path.name == CHECKPOINTS:
        return path.is_dir() and not any(path.iterdir())
    if path.name == _OF_HYDRA and path.is_dir():  # is it from a start of ours?
        composed = path / "config.yaml"
        content = read_bytes(composed) if composed.exists() else b""
        return not content or b"test_domains:" in content  # empty: another process writes it now
    return path.name[0] in ".~" or path.suffix == ".log"
