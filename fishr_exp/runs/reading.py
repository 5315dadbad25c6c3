"""Reads the run folders under a folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fishr_exp.runs.alike import Alike
from fishr_exp.runs.content import START_AGAIN, UnreadableError
from fishr_exp.runs.identity import compared
from fishr_exp.runs.methods import is_erm, method_of
from fishr_exp.runs.results import read_result
from fishr_exp.runs.run_folder import CONFIG, DONE, RECORDS, RESULT, RunFolder

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Measured:
    """What a metric is of the result of a run."""

    train: float | None  # mean over the training domains' training parts
    validation: float | None  # mean over the training domains' validation parts
    test: Mapping[str, float]  # test domain -> over all its samples


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
    step: int  # of the checkpoint
    monitor: str  # what the checkpoint was selected by
    selected_by_test_domain: bool
    train_accuracy: float | None  # mean over the training domains' training parts
    validation_accuracy: float | None  # mean over the training domains' validation parts
    test_accuracy: Mapping[str, float]  # test domain -> accuracy over all its samples
    is_erm: bool  # its trainer is the ERM baseline
    option: str  # the option of `trainer` that configured it
    data: Mapping[str, str] = field(default_factory=dict)  # domain -> digest, if it was recorded
    training_domains: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()  # all, in the order of the dataset, if they were recorded
    only_choice: bool = False  # its result is of no record: see `Selected`
    others: Mapping[str, Measured] = field(default_factory=dict)  # metrics beside accuracy and loss

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """The flat settings that distinguish results, in normal form; see `compared`."""
        return compared(self.config)


@dataclass(frozen=True)
class Runs:
    """What lies under a folder."""

    done: list[Run] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)  # folder -> what is wrong, and the fix

    def __len__(self) -> int:
        return len(self.done) + len(self.failed) + len(self.unfinished) + len(self.broken)


def read_runs(root: str | Path) -> Runs:
    """Read all runs in `root` and in the folders under it, in the order of their paths.

    A run that cannot be read is named in `broken`; it does not stop the others.

    Raises:
        OSError: If `root` itself cannot be listed.
    """
    runs, alike = Runs(), Alike()
    for folder in run_folders(root):
        read_into(runs, folder, alike)
    return runs


def read_into(runs: Runs, folder: Path, alike: Alike) -> None:
    """Read the run in a folder, whatever its state, and add it to `runs`.

    Args:
        runs: What has been read so far.
        folder: The run's folder.
        alike: What the runs read before have in common, kept once; it is added to.
    """
    try:
        state = RunFolder(folder).state
        if state == "failed":
            runs.failed.append(folder)
        elif state == "done":
            runs.done.append(_read_run(folder, alike))
        else:
            runs.unfinished.append(folder)
    except UnreadableError as error:
        runs.broken[folder] = f"{error.allowed}; {START_AGAIN}"
    except OSError as error:
        runs.broken[folder] = f"it cannot be read ({error.strerror}); {START_AGAIN}"


def run_folders(root: str | Path) -> list[Path]:
    """Return the run folders in `root` and under it, by path.

    A tracker's copy of a run's configuration and result, without its records, is not one.

    Raises:
        OSError: If `root` itself cannot be listed.
    """
    is_run, waiting = listing(os.fspath(root))
    found = [os.fspath(root)] if is_run else []
    while waiting:
        folder = waiting.pop()
        try:
            is_run, inner = listing(folder)
        except OSError:
            continue
        waiting += inner
        if is_run:
            found.append(folder)
    return by_path(map(Path, found))


def by_path(folders: Iterable[Path]) -> list[Path]:
    """Return folders in the order in which tables count their runs."""
    return sorted(folders, key=lambda path: path.parts)


def listing(folder: str) -> tuple[bool, list[str]]:
    """Return whether a folder is a run's, and the folders in it. Links to folders are left out.

    Raises:
        OSError: If it cannot be listed.
    """
    names, inner = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.add(entry.name)  # a folder may stand in the place of a file
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.path)
    return CONFIG in names and (RECORDS in names or DONE in names), inner


def _read_run(folder: Path, alike: Alike) -> Run:
    config = RunFolder(folder).config()
    result = read_result(folder, config)
    try:
        config, settings = alike.config(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableError.of(folder / CONFIG, f"is damaged ({error})") from error
    outline, selected, scores = result.outline, result.selected, result.scores
    found = Run(
        path=folder,
        config=config,
        dataset=alike.one(outline.labels["dataset"]),
        model=alike.one(outline.labels["model"]),
        method=alike.one(method_of(config, outline.method)),
        gamma=outline.gamma,
        seed=outline.seed,
        test_domains=alike.one(tuple(outline.test_domains)),
        step=selected.step,
        monitor=alike.one(selected.monitor),
        selected_by_test_domain=selected.uses_test_domain,
        train_accuracy=scores.mean("accuracy", "train"),
        validation_accuracy=scores.mean("accuracy", "validation"),
        test_accuracy=_known(result.test["accuracy"], folder),
        is_erm=is_erm(config),
        option=alike.one(outline.labels["trainer"]),
        data=alike.mapping(result.data),
        training_domains=alike.one(tuple(outline.training_domains)),
        domains=alike.one(tuple(scores.by_domain.get("accuracy", ()))),
        only_choice=selected.only_choice,
        others={
            alike.one(metric): Measured(
                scores.mean(metric, "train"),
                scores.mean(metric, "validation"),
                {domain: value for domain, value in of.items() if value is not None},
            )
            for metric, of in result.test.items()
            if metric not in (ACCURACY, "loss")
        },
    )
    vars(found)["settings"] = settings  # as it would be found
    return found


def _known(accuracies: Mapping[str, float | None], folder: Path) -> dict[str, float]:
    known = {domain: value for domain, value in accuracies.items() if value is not None}
    if absent := [*(accuracies.keys() - known.keys())]:
        raise UnreadableError.of(folder / RESULT, f"is damaged: no accuracy of {absent[0]}")
    return known
