"""The Colored MNIST table of the IRM setup, as in Table 2 of the Fishr paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fishr_exp.reports.published import Reference, method_key
from fishr_exp.reports.sheets.table_sheet import show_gammas
from fishr_exp.reports.tables.comparison import (
    Cell,
    Comparison,
    ComparisonRow,
    Trace,
    over_restarts,
)
from fishr_exp.reports.tables.grouping import L2
from fishr_exp.reports.tables.table import Row, build_tables
from fishr_exp.runs.files import to_json
from fishr_exp.runs.methods import ERM
from fishr_exp.runs.reading import Run

PROTOCOL = "colored_mnist"
DATASET = "colored_mnist"
# Column -> accuracy, a fraction.
COLUMNS: dict[str, Callable[[Run], float | None]] = {
    "train": lambda run: run.train_accuracy,
    "test": lambda run: run.test_accuracy.get("minus90"),
    "gray": lambda run: run.test_accuracy.get("gray"),
}
# Settings of the published figures; not every method has all of them.
PRESCRIBED: dict[str, Any] = {
    "steps": 500,
    "test_domains": ["gray", "minus90"],
    "holdout_fraction": 0,
    "batch_size": None,  # the whole domain
    "sampling": "permutation",
    "limit_samples": None,
    "clip_norm": None,
    "precision": "fp32",
    "model.hidden": 390,
    "model.hidden_layers": 2,
    "model.single_logit": True,
    "model.weights_file": None,
    "loss.label_smoothing": 0,
    "loss.class_weights": None,
    "optimizer._target_": "torch.optim.Adam",
    "optimizer.lr": 0.0004898536566546834,
    "optimizer.weight_decay": 0,
    "optimizer.classifier_lr_factor": 1,
    "scheduler._target_": None,
    "averaging._target_": None,
    "trainer.l2": 0.00110794568,
    "trainer.gamma": 91257.18613115903,
    "trainer.convention": "colored_mnist",
    "trainer.anneal_steps": 190,
    "trainer.ramp": "none",
    "trainer.ema_decay": 0,
    "trainer.scope": "classifier",
    "trainer.statistic": "variance",
    "trainer.unbiased": False,
    "trainer.within_classes": False,
    "trainer.penalty_interval": 1,
}
_STATISTIC = "trainer.statistic"
_OF_A_PENALTY = tuple(key for key in PRESCRIBED if key.startswith("trainer.") and key != L2)
_NOTES = (
    "Accuracy in % at the last step, mean ± population standard deviation over seeds; one seed"
    " has no deviation.",
    "train: mean over the two training domains; test: the domain with the color reversed"
    " (minus90); gray: the same digits without color.",
)


def build_colored_mnist_tables(runs: Iterable[Run]) -> list[Comparison]:
    """Build one table per amount of label noise among the runs of the protocol.

    Methods of a published table without a run get a row, too.
    """
    counted = [run for run in runs if is_in_protocol(run)]
    by_noise: dict[float, list[Run]] = {}
    for run in counted:
        by_noise.setdefault(_label_noise(run), []).append(run)
    return [_table(noise, by_noise[noise]) for noise in sorted(by_noise, reverse=True)]


def is_in_protocol(run: Run) -> bool:
    """Whether a run is in the IRM setup, with the result of the last step."""
    return run.dataset == DATASET and run.monitor == "last step"


def departures(run: Run) -> list[str]:
    """Return the settings in which a run differs from the published figures."""
    own = {
        **run.settings,
        "steps": run.step,
        "test_domains": sorted(run.test_domains),
    }
    return [
        f"{key} {to_json(own[key])}, not {to_json(value)}"
        for key, value in PRESCRIBED.items()
        if key in own and own[key] != value and (run.gamma != 0 or key not in _OF_A_PENALTY)
    ]


def _method(row: Row) -> str:
    return ERM if row.gamma == 0 else row.method


def _label_noise(run: Run) -> float:
    return float(run.config["dataset"].get("label_noise", 0.25))


def _table(noise: float, runs: Sequence[Run]) -> Comparison:
    name = f"label noise {noise:g}"
    reference = Reference(PROTOCOL, None)
    tables = build_tables(runs)  # several, if runs have different test domains
    labeled = [
        pair for table in tables for pair in zip(table.rows, _labels(table.rows), strict=True)
    ]
    departing = [
        f"No verdict on {label}, which departs from the published runs: {'; '.join(found)}."
        for row, label in labeled
        if (found := departures(row.runs[0]))  # the others differ only in their seed
    ]
    published = {method_key(method): method for method in reference.methods(name)}
    present = {method_key(_method(row)) for row, _ in labeled}
    by_method = [
        (method_key(_method(row)), _row(row, label, reference, name)) for row, label in labeled
    ]
    by_method += [
        (
            key,
            ComparisonRow(
                method, {c: Cell(None, reference.figure(name, method, c)) for c in COLUMNS}, 0
            ),
        )
        for key, method in published.items()
        if key not in present
    ]
    order = list(published)
    by_method.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
    repeats = [run for table in tables for run in table.repeats]
    paths = ", ".join(str(run.path) for run in repeats)
    notes = [f"Not counted, since they repeat a run: {paths}."] if paths else []
    return Comparison(
        protocol=PROTOCOL,
        selection=None,
        name=name,
        title=f"Colored MNIST; {name}",
        columns=tuple(COLUMNS),
        rows=tuple(row for _, row in by_method),
        repeated="seeds",
        separate_columns=True,
        notes=(*_NOTES, *departing, *notes),
    )


def _row(row: Row, label: str, reference: Reference, name: str) -> ComparisonRow:
    cells, departs = {}, bool(departures(row.runs[0]))
    statistic = row.runs[0].settings.get(_STATISTIC, PRESCRIBED[_STATISTIC])
    was_published = statistic == PRESCRIBED[_STATISTIC]  # another one is another penalty
    for column, accuracy in COLUMNS.items():
        known = [(run, value) for run in row.runs if (value := accuracy(run)) is not None]
        own = over_restarts([100 * value for _, value in known])
        traces = tuple(Trace(run.seed, 100 * value, run.path) for run, value in known)
        published = reference.figure(name, _method(row), column) if was_published else None
        cells[column] = Cell(own, published, traces, departs)
    return ComparisonRow(label, cells, len(row.runs))


def _labels(rows: Sequence[Row]) -> list[str]:
    """Label each row by its method and, if that is ambiguous, by gamma and settings."""
    gammas = show_gammas([row.gamma for row in rows if row.gamma is not None])
    labels = []
    for row in rows:
        gammas_of_method = {other.gamma for other in rows if other.method == row.method}
        gamma = [f"gamma={gammas[row.gamma]}"] if row.gamma and len(gammas_of_method) > 1 else []
        settings = [f"{name}={value}" for name, value in row.settings.items()]
        labels.append(" ".join([row.label, *gamma, *settings]))
    return labels
