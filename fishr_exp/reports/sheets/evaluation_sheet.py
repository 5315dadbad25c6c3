"""Puts what `fishr-eval` found out on sheets: by domain, by class, confusion and calibration."""

from __future__ import annotations

from collections.abc import Sequence

from fishr_exp.reports.metric import metric_name
from fishr_exp.reports.sheets.sheet import Line, Sheet
from fishr_exp.runs.evaluated import Evaluated, EvaluatedRun

FIRST = ("accuracy", "loss", "macro_f1", "balanced_accuracy", "worst_class")  # in this order
CALIBRATION_ERROR = "ECE"
_SHORT = {"balanced_accuracy": "balanced", "worst_class": "worst class"}  # headers
ABSENT = "–"
MOST_LINES = 60  # of classes on a terminal


def domains_sheet(run: EvaluatedRun) -> Sheet:
    """Return a row for each domain, or part of it."""
    measured = run.domains[0].metrics
    columns = [metric for metric in (*FIRST, *sorted({*measured} - {*FIRST})) if metric in measured]
    rows, lines = [], []
    for of in run.domains:
        values = [_shown(metric, of.metrics[metric]) for metric in columns]
        error = f"{100 * of.calibration_error:.1f}"
        rows.append([of.domain, *_what(run, of), str(of.samples), *values, error])
        measures = {metric: _exact(metric, of.metrics[metric]) for metric in columns}
        lines.append(
            Line(
                {"run": run.run, "dataset": run.dataset, **_of(of)},
                {"n": str(of.samples), **measures, "ece": f"{100 * of.calibration_error:.4f}"},
            )
        )
    names = [_SHORT.get(metric, metric_name(metric)) for metric in columns]
    headers = ["domain", *(["samples"] if run.own else []), "n", *names, CALIBRATION_ERROR]
    accuracy = run.worst.metrics["accuracy"]
    notes = [
        "All but the loss in %, over the classes that occur. balanced: balanced accuracy; worst"
        " class: the lowest recall of a class.",
        f"ECE: expected calibration error, {len(run.domains[0].bins)} bins of equal width.",
        f"Worst domain: {run.worst.title}, with an accuracy of {_shown('accuracy', accuracy)} %.",
        *run.notes,
    ]
    return Sheet(run.title, headers, rows, 1 + run.own, notes, lines)


def classes_sheet(run: EvaluatedRun) -> Sheet:
    """Return a row for each class in each domain, of samples that were not trained on.

    The lines of its CSV are of all parts.
    """
    rows = []
    unseen = [*run.unseen]
    for of in unseen:
        for name, scores in _scores(run, of):
            shown = [ABSENT if value is None else f"{100 * value:.1f}" for value in scores[2:]]
            rows.append([of.title, name, str(scores[0]), str(scores[1]), *shown])
    lines = []
    for of in run.domains:
        for name, (samples, predicted, *values) in _scores(run, of):
            measures = {"n": str(samples), "predicted": str(predicted)}
            for key, value in zip(("precision", "recall", "f1"), values, strict=True):
                measures[key] = "" if value is None else f"{100 * value:.4f}"
            lines.append(Line({**_of(of), "class": name}, measures))
    notes = [
        "Precision, recall and F1 in %. n: samples of the class; predicted: samples taken for it."
        f" {ABSENT}: there are none.",
    ]
    if len(rows) > MOST_LINES:
        rows = []
        notes = [f"{len(lines)} classes of domains are in classes.csv."]
    headers = ["domain", "class", "n", "predicted", "precision", "recall", "F1"]
    return Sheet("By class", headers, rows, 2, notes, lines)


def confusion_lines(run: EvaluatedRun) -> Sheet:
    """Return the confusion matrices for a CSV: a line for each label, a column for each class."""
    lines = [
        Line(
            {**_of(of), "label": name},
            {
                f"predicted {other}": str(count)
                for other, count in zip(run.classes, row, strict=True)
            },
        )
        for of in run.domains
        for name, row in zip(run.classes, of.confusion, strict=True)
    ]
    return Sheet("Confusion", [], [], 0, [], lines)


def calibration_lines(run: EvaluatedRun) -> Sheet:
    """Return the bins of confidence for a CSV; values are fractions."""
    lines = [
        Line(
            {**_of(of), "low": f"{bin.low:.4f}", "high": f"{bin.high:.4f}"},
            {
                "n": str(bin.samples),
                "confidence": "" if bin.confidence is None else f"{bin.confidence:.6f}",
                "accuracy": "" if bin.accuracy is None else f"{bin.accuracy:.6f}",
            },
        )
        for of in run.domains
        for bin in of.bins
    ]
    return Sheet("Calibration", [], [], 0, [], lines)


def _scores(run: EvaluatedRun, of: Evaluated) -> list[tuple[str, tuple[float | None, ...]]]:
    """Return of each class its samples, how many were taken for it, precision, recall, F1."""
    found: list[tuple[str, tuple[float | None, ...]]] = []
    taken = [sum(column) for column in zip(*of.confusion, strict=True)]
    for place, (name, row) in enumerate(zip(run.classes, of.confusion, strict=True)):
        samples, predicted, right = sum(row), taken[place], row[place]
        precision = right / predicted if predicted else None
        recall = right / samples if samples else None
        f1 = 2 * right / (samples + predicted) if samples + predicted else None
        found.append((name, (samples, predicted, precision, recall, f1)))
    return found


def _of(of: Evaluated) -> dict[str, str]:
    return {"domain": of.domain, "part": of.part, "role": of.role}


def _what(run: EvaluatedRun, of: Evaluated) -> Sequence[str]:
    if not run.own:
        return []
    return [f"{of.part} (test domain)" if of.role == "test" else of.part]


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4f}" if metric == "loss" else f"{100 * value:.1f}"


def _exact(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if metric == "loss" else f"{100 * value:.4f}"
