"""What chooses the result of a run: early stopping, or an averaging scheme; checked beforehand."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from fishr_exp.core.contracts import Averaging, Trainer, printed_name
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.records import PARTS
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.evaluation import LOWER_IS_BETTER, METRICS, measure

log = logging.getLogger(__name__)


def prepare_observer(
    observer: EarlyStopping,
    arguments: Arguments,
    trainer: Trainer,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: list[str],
) -> None:
    """Tell the observer what it may watch; refuse what no evaluation will give."""
    evaluated = PARTS if arguments.evaluate_train else PARTS[1:]
    filled = {name: [p for p in evaluated if len(parts[name][p])] for name in parts}
    means = [p for p in PARTS if all(p in filled[name] for name in training_domains)]
    places = [f"{name}/{part}" for name in parts for part in filled[name]]
    metrics = measure(None, arguments.metrics)
    observer.measured = [
        *(f"{part}_{metric}" for metric in metrics for part in means),
        *(f"{metric}/{place}" for metric in metrics for place in places),
    ]
    observer.not_before = trainer.anneal_steps
    metric = _metric_of(observer.monitor)
    if (metric or observer.monitor) in LOWER_IS_BETTER and observer.sign > 0:
        reason = f"{observer.monitor} is better the lower it is, and max would select the worst"
        if metric:
            raise ConfigError("observer.mode", "max", reason, "pass observer.mode=min")
        log.warning("observer.mode=max: %s; pass observer.mode=min", reason)  # was always allowed
    is_measured = bool(metric) or "accuracy" in observer.monitor
    if is_measured and observer.monitor not in observer.measured:
        raise ConfigError(
            "observer.monitor",
            observer.monitor,
            f"no evaluation gives it; choose from objective, risk, {', '.join(observer.measured)}",
            _how_to_monitor(observer, arguments, parts, training_domains),
        )


def leave_the_choice(
    averaging: Averaging,
    observer: EarlyStopping,
    arguments: Arguments,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: list[str],
) -> None:
    """Let an averaging scheme choose the result, and refuse one that lacks what it monitors."""
    if averaging.monitor and averaging.monitor not in observer.measured:
        raise ConfigError(
            "averaging", printed_name(averaging), f"no evaluation gives {averaging.monitor}",
            _how_to_measure(averaging.monitor, arguments, parts, training_domains),
        )  # fmt: skip
    if averaging.selects:
        observer.keep, observer.patience = "last", None
    elif observer.watches(arguments.test_domains):
        log.warning("observer.monitor=%s selects by a test domain", observer.monitor)


def _how_to_monitor(
    observer: EarlyStopping,
    arguments: Arguments,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: Sequence[str],
) -> str:
    """Say which quantity was probably meant, or what would give the one that was named."""
    metric = _metric_of(observer.monitor)
    has_parts = all(len(parts[name][PARTS[1]]) for name in training_domains)
    if metric in arguments.metrics and has_parts:
        near = difflib.get_close_matches(observer.monitor, observer.measured, n=1)
        return f"did you mean {near[0]}?" if near else ""
    return f"or {_how_to_measure(observer.monitor, arguments, parts, training_domains)}"


def _how_to_measure(
    monitor: str,
    arguments: Arguments,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: Sequence[str],
) -> str:
    """Say what gives a quantity of the training domains' validation parts."""
    metric = _metric_of(monitor)
    if metric and metric not in arguments.metrics:
        return f"pass 'metrics=[{','.join([*arguments.metrics, metric])}]'"
    return _how_to_validate(arguments.holdout_fraction, parts, training_domains)


def _how_to_validate(
    fraction: float, parts: Mapping[str, Mapping[str, Tensor]], training_domains: Sequence[str]
) -> str:
    """Say what gives every training domain a validation part."""
    sizes = {name: sum(len(part) for part in parts[name].values()) for name in training_domains}
    smallest = min(sizes, key=lambda name: sizes[name])
    enough = math.ceil(100 / sizes[smallest]) / 100
    if not 0 < fraction < enough:
        return "keep a part for validation with holdout_fraction=0.2"
    return (
        f"pass holdout_fraction={enough:g}, since {fraction:g} of the {sizes[smallest]} samples "
        f"of domain {smallest} is less than one sample"
    )


def _metric_of(monitor: str) -> str:
    """Return the metric of a mean or of METRIC/DOMAIN/PART; empty for a loss of the trainer."""
    means = {f"{part}_{metric}": metric for part in PARTS for metric in METRICS}
    metric, slash, _ = monitor.partition("/")
    return means.get(monitor, metric if slash and metric in METRICS else "")
