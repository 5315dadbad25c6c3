"""Runs and records as pandas DataFrames, for notebooks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fishr_exp.runs.identity import settings
from fishr_exp.runs.reading import Run
from fishr_exp.runs.records import Evaluation, parse_evaluations
from fishr_exp.runs.run_folder import RECORDS, RunFolder

if TYPE_CHECKING:
    import pandas


def runs_frame(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row for each run: what it was, its accuracies, and all settings by their keys."""
    return _frame([{**_what(run), **_outcome(run), **_settings(run)} for run in runs])


def records_frame(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row for each evaluation of each run.

    Raises:
        UnreadableError: If a record cannot be read.
    """
    rows = []
    for run in runs:
        for record in parse_evaluations(run.path / RECORDS):
            found = Evaluation.from_json(record)
            more = {"step": found.step, "epoch": found.epoch, "seconds": found.seconds}
            looked = {f"diagnostics/{key}": v for key, v in (found.diagnostics or {}).items()}
            rows.append({**_what(run), **more, **found.numbers(), **looked})
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    return importlib.import_module("pandas").DataFrame(rows)


def _what(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "name": run.path.name,
        "dataset": run.dataset,
        "model": run.model,
        "method": run.method,
        "gamma": run.gamma,
        "seed": run.seed,
        "test_domains": ", ".join(run.test_domains),
    }


def _outcome(run: Run) -> dict[str, Any]:
    accuracies = list(run.test_accuracy.values())
    return {
        "step": run.step,
        "monitor": run.monitor,
        "seconds": RunFolder(run.path).result_of_done().get("seconds"),
        "train_accuracy": run.train_accuracy,
        "validation_accuracy": run.validation_accuracy,
        "test_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        **{f"test_accuracy/{domain}": value for domain, value in run.test_accuracy.items()},
    }


def _settings(run: Run) -> dict[str, Any]:
    own = _what(run) | _outcome(run)
    return {key: value for key, value in settings(run.config).items() if key not in own}
