"""Runs as tables of another metric than accuracy see them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.reading import ACCURACY, Run

# What tables and figures call a metric, where its key is not what they would call it.
_MORE = ("macro_f1", "worst_class", "balanced_accuracy")  # of what a run may be asked to record
_NAMES = {"macro_f1": "macro F1", "worst_class": "worst-class recall"}
_SHOWN = 3  # paths of runs in a line


def metric_name(metric: str) -> str:
    """Return what tables and figures call a metric, in the middle of a sentence."""
    return _NAMES.get(metric, metric.replace("_", " "))


def measured_by(runs: Sequence[Run], metric: str) -> tuple[list[Run], list[str]]:
    """Return the runs that recorded a metric, with its values in the place of accuracies.

    Also returns a line about the others, if there are any.

    Raises:
        ConfigError: If it is not a fraction, or no run recorded it.
    """
    if metric == ACCURACY:
        return list(runs), []
    if metric == "loss":
        reason = "tables are in percent, and a loss is not a fraction"
        hint = f"choose from {', '.join(_known(runs))}; losses are in each result.json"
        raise ConfigError("--metric", metric, reason, hint)
    found = [
        replace(
            run,
            train_accuracy=of.train,
            validation_accuracy=of.validation,
            test_accuracy=of.test,
        )
        for run in runs
        if (of := run.others.get(metric))
    ]
    lacking = [str(run.path) for run in runs if metric not in run.others]
    shown = ", ".join(lacking[:_SHOWN])
    if len(lacking) > _SHOWN:
        shown += f" and {len(lacking) - _SHOWN} more"
    how = (
        f"run them with 'metrics=[accuracy,loss,{metric}]', which makes runs of their own, or pass"
        " them to fishr-eval, which does not train"
    )
    if not found:
        reason = f"no run recorded it; the runs have {', '.join(_known(runs))}"
        near = difflib.get_close_matches(metric, _MORE, 1, 0.3)
        if metric not in _MORE:
            how = f"choose from {', '.join((ACCURACY, *_MORE))}"
            how += f"; did you mean {near[0]}?" if near else ""
            raise ConfigError("--metric", metric, reason, how)
        raise ConfigError("--metric", metric, reason, f"{how}: {shown}")
    plural = "run has" if len(lacking) == 1 else "runs have"
    about = f"Not counted: {len(lacking)} {plural} no {metric}: {shown}; {how}."
    return found, [about] if lacking else []


def _known(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys([ACCURACY, *(name for run in runs for name in run.others)]))
