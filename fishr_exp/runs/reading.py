"""Reads the run folders under a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.methods import is_erm, method_of
from fishr_exp.runs.records import Result
from fishr_exp.runs.run_folder import CONFIG, RECORDS, RESULT, RunFolder


@dataclass(frozen=True)
class Run:
    """A run that is done: what it was and what came out. Accuracies are fractions in [0, 1]."""

    path: Path
    config: Mapping[str, Any]  # resolved, nested
    dataset: str
    model: str
    method: str  # its printed name, by what was built
    gamma: float | None  # weight of the penalty; None for a method without one
    seed: int
    test_domains: tuple[str, ...]
    step: int  # optimizer updates until the checkpoint
    monitor: str  # what the checkpoint was selected by
    selected_by_test_domain: bool
    train_accuracy: float | None  # mean over the training domains' training parts
    validation_accuracy: float | None  # mean over the training domains' validation parts
    test_accuracy: Mapping[str, float]  # test domain -> accuracy over all its samples
    is_erm: bool  # its trainer is the ERM baseline
    option: str  # the option of `trainer` that configured it
    data: Mapping[str, str] = field(default_factory=dict)  # domain -> digest, if it was recorded


@dataclass(frozen=True)
class Runs:
    """What lies under a folder."""

    done: list[Run] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)  # folder -> what is wrong

    def __len__(self) -> int:
        return len(self.done) + len(self.failed) + len(self.unfinished) + len(self.broken)


def read_runs(root: str | Path) -> Runs:
    """Read all runs in `root` and in the folders under it, in the order of their paths.

    A run that cannot be read is named in `broken`; it does not stop the others.

    Raises:
        OSError: If `root` itself cannot be listed.
    """
    root = Path(root)
    os.listdir(root)  # raises; `os.walk` would go on silently
    runs = Runs()
    for folder in sorted(Path(path) for path, _, files in os.walk(root) if _is_run(files)):
        try:
            state = RunFolder(folder).state
            if state == "failed":
                runs.failed.append(folder)
            elif state == "done":
                runs.done.append(_read_run(folder))
            else:
                runs.unfinished.append(folder)
        except _UnreadableError as error:
            runs.broken[folder] = str(error)
        except ConfigError as error:  # from the folder, which speaks to who wants to run in it
            runs.broken[folder] = error.allowed
    return runs


class _UnreadableError(Exception):
    """A file of a run is not what it should be."""


def _is_run(files: list[str]) -> bool:
    # Trackers keep copies of config and result, without the records: those are no runs.
    return CONFIG in files and RECORDS in files


def _read_run(folder: Path) -> Run:
    config, written = _read_object(folder / CONFIG), _read_object(folder / RESULT)
    try:
        result = Result.from_json(written)
        outline, selected, scores = result.outline, result.selected, result.scores
        return Run(
            path=folder,
            config=config,
            dataset=str(outline.labels["dataset"]),
            model=str(outline.labels["model"]),
            method=method_of(config, outline.method),
            gamma=_number(outline.gamma),
            seed=outline.seed,
            test_domains=tuple(outline.test_domains),
            step=int(selected.step),
            monitor=str(selected.monitor),
            selected_by_test_domain=bool(selected.uses_test_domain),
            train_accuracy=_number(scores.mean("accuracy", "train")),
            validation_accuracy=_number(scores.mean("accuracy", "validation")),
            test_accuracy={str(d): _known(a) for d, a in result.test["accuracy"].items()},
            is_erm=is_erm(config),
            option=str(outline.labels["trainer"]),
            data={str(d): str(digest) for d, digest in (written.get("data") or {}).items()},
        )
    except KeyError as error:
        raise _UnreadableError(f"{RESULT} lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise _UnreadableError(f"{RESULT} holds something unexpected ({error})") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _UnreadableError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise _UnreadableError(f"{path.name} is not an object")
    return value


def _known(value: float | None) -> float:
    if value is None:
        raise TypeError("an accuracy is null")
    return float(value)


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
