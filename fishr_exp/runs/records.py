"""What is written about a run, typed: one evaluation, and the result.

Values are plain: fractions in [0, 1] for accuracies, seconds, counts. The keys in the files are
those that every version has written; a new metric adds keys of the same form. Whatever is read is
checked here, once; the rest of the package takes it for what its type says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishr_exp.runs.content import (
    UnreadableError,
    anything,
    count,
    finite,
    flag,
    fraction,
    integer,
    label,
    mapping,
    number,
    optional,
    parse_records,
    several,
    take,
    text,
)
from fishr_exp.runs.shared import Shared

PARTS = ("train", "validation")
_IN_PARTS = frozenset(PARTS).issuperset
_OF_MEANS = tuple(f"{part}_" for part in PARTS)  # how the keys of means begin
Diagnostics = Mapping[str, float | None]


@dataclass(frozen=True)
class Scores:
    """Metrics of every domain and part, and their means over the training domains.

    None stands for what was not measured.
    """

    by_domain: Mapping[str, Mapping[str, Mapping[str, float | None]]]  # metric, domain, part
    means: Mapping[str, float | None]  # PART_METRIC, as validation_accuracy

    def mean(self, metric: str, part: str) -> float | None:
        """Return the mean of a metric over the training domains."""
        return self.means.get(f"{part}_{metric}")

    def of(self, metric: str, domain: str) -> Mapping[str, float | None]:
        """Return a metric of one domain by part."""
        return self.by_domain[metric][domain]

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Flatten to `PART_METRIC` and `METRIC/DOMAIN/PART`, without what was not measured."""
        for name, value in self.means.items():
            if value is not None:
                yield name, value
        for metric, domains in self.by_domain.items():
            for domain, parts in domains.items():
                for part, value in parts.items():
                    if value is not None:
                        yield f"{metric}/{domain}/{part}", value

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a record or result that hold them."""
        return {**self.by_domain, **self.means}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Scores:
        """Read them from a record or a result, of whatever metrics there are.

        Raises:
            ValueError: If a value is not a number, or an accuracy is outside [0, 1].
        """
        by_domain = {
            key: take(written, key, _ACCURACIES if key == "accuracy" else _NUMBERS)
            for key, value in written.items()
            if key == "accuracy"
            or (key != "counts" and isinstance(value, dict) and _is_by_domain(value))
        }
        means = {
            key: take(written, key, optional(_of_metric(key.partition("_")[2])))
            for key in written
            if key.startswith(_OF_MEANS)
        }
        return cls(by_domain, means)


def _of_metric(metric: str) -> Any:
    return fraction if metric == "accuracy" else number


_ACCURACIES, _NUMBERS = (mapping(mapping(optional(of))) for of in (fraction, number))


def _is_by_domain(value: Mapping[str, Any]) -> bool:
    for of in value.values():
        if not (isinstance(of, dict) and _IN_PARTS(of)):
            return False
    return bool(value)


@dataclass(frozen=True)
class Evaluation:
    """One line of records.jsonl."""

    step: int  # updates so far
    epoch: int
    losses: Mapping[str, float]  # means over the epoch's steps that logged them
    scores: Scores
    seconds_per_step: float  # means over the epoch's steps
    seconds_waiting_per_step: float  # of them, for the next batch
    learning_rate: float
    diagnostics: Diagnostics | None = None
    seconds: float = 0.0  # since the run began, its pauses left out
    time: float | None = None  # when it was written, in seconds since 1970

    def numbers(self) -> dict[str, float]:
        """Flatten what is measured: losses, `validation_accuracy`, ..., `METRIC/DOMAIN/PART`."""
        return {**self.losses, **dict(self.scores.numbers())}

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is written."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "seconds_per_step": self.seconds_per_step,
            "seconds_waiting_per_step": self.seconds_waiting_per_step,
            "learning_rate": self.learning_rate,
            "losses": dict(self.losses),
            **self.scores.to_json(),
            **({} if self.diagnostics is None else {"diagnostics": dict(self.diagnostics)}),
            "seconds": self.seconds,
            "time": self.time,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Evaluation:
        """Read a record of any version; the first ones had fewer keys.

        Raises:
            ValueError: If a key is missing, or its value is of another type.
        """
        return cls(
            step=take(record, "step", count),
            epoch=take(record, "epoch", count, 0),
            losses=take(record, "losses", mapping(number), {}),
            scores=Scores.from_json(record),
            seconds_per_step=take(record, "seconds_per_step", finite, 0.0),
            seconds_waiting_per_step=take(record, "seconds_waiting_per_step", finite, 0.0),
            learning_rate=take(record, "learning_rate", number, 0.0),
            diagnostics=take(record, "diagnostics", optional(mapping(optional(number))), None),
            seconds=take(record, "seconds", finite, 0.0),
            time=take(record, "time", optional(finite), None),
        )


def parse_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run: each an evaluation, of a later step than the one before.

    Raises:
        UnreadableError: If they are not; the line is named.
    """
    records, before = parse_records(path, b'{"step": '), -1
    for place, record in enumerate(records, start=1):
        try:
            step = Evaluation.from_json(record).step
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: line {place}: {error}") from error
        if step <= before:
            hint = "remove the line that is wrong, or pass resume=false to start from scratch"
            problem = f"is damaged: line {place}: step {step} comes after step {before}"
            raise UnreadableError.of(path, problem, hint)
        before = step
    return records


@dataclass(frozen=True)
class Selected:
    """Which checkpoint is the result."""

    step: int
    epoch: int
    monitor: str  # what it was selected by
    uses_test_domain: bool
    penalty_had_acted: bool
    only_choice: bool = False  # no record is of the same weights: tables cannot select another step

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written."""
        values = dict(vars(self))
        if not self.only_choice:  # as it was before there was the key
            del values["only_choice"]
        return values

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Selected:
        """Read it from a result of any version; see `Result.from_json`."""
        return cls(
            step=take(written, "step", count),
            epoch=take(written, "epoch", count),
            monitor=take(written, "monitor", text),
            uses_test_domain=take(written, "uses_test_domain", flag),
            penalty_had_acted=take(written, "penalty_had_acted", flag, False),
            only_choice=take(written, "only_choice", flag, False),
        )


@dataclass(frozen=True)
class Outline:
    """What a run is, as far as it is known before its first step."""

    labels: Mapping[str, str]  # the options of dataset, model and trainer
    method: str | None  # what tables call the method; None in runs of versions before it
    gamma: float | None
    seed: int
    training_domains: list[str]
    test_domains: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the keys of a result that hold it."""
        return {**vars(self), "labels": dict(self.labels)}


@dataclass(frozen=True)
class Result:
    """What a run that is done came to: result.json."""

    outline: Outline
    selected: Selected
    scores: Scores  # of the selected checkpoint
    test: Mapping[str, Mapping[str, float | None]]  # metric -> test domain -> over all its samples
    counts: Mapping[str, Mapping[str, int]]  # samples by domain and part
    skipped: Mapping[str, int]  # samples left out as broken, by domain
    data: Mapping[str, str]  # domain -> number of samples and digest of names and labels
    last: Mapping[str, Any]  # step and accuracies of the last step
    seconds: float  # of this run itself, its pauses left out
    shared: Shared | None = None  # the first steps, if it took them over

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written."""
        return {
            "status": "done",
            **self.outline.to_json(),
            "selected": self.selected.to_json(),
            **self.scores.to_json(),
            "counts": {domain: dict(parts) for domain, parts in self.counts.items()},
            **({"skipped": dict(self.skipped)} if self.skipped else {}),
            "data": dict(self.data),
            "last": dict(self.last),
            **{f"test_{metric}": dict(by_domain) for metric, by_domain in self.test.items()},
            "seconds": self.seconds,
            **({} if self.shared is None else {"shared": vars(self.shared)}),
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Result:
        """Read a result of any version.

        Raises:
            ValueError: If a key is missing, or its value is of another type, or an accuracy is
                outside [0, 1].
        """
        scores = Scores.from_json(written)
        outline = Outline(
            labels=take(written, "labels", mapping(text)),
            method=take(written, "method", optional(text), None),
            gamma=take(written, "gamma", optional(finite), None),
            seed=take(written, "seed", integer),
            training_domains=take(written, "training_domains", several(label), []),
            test_domains=take(written, "test_domains", several(label)),
        )
        for name in ("dataset", "model", "trainer"):
            take(outline.labels, name, text)
        metrics = dict.fromkeys(["accuracy", *scores.by_domain])
        return cls(
            outline=outline,
            selected=Selected.from_json(take(written, "selected", mapping(anything))),
            scores=scores,
            test={
                metric: take(written, f"test_{metric}", mapping(optional(_of_metric(metric))))
                for metric in metrics
                if metric == "accuracy" or f"test_{metric}" in written
            },
            counts=take(written, "counts", mapping(mapping(count)), {}),
            skipped=take(written, "skipped", mapping(count), {}),
            data=take(written, "data", mapping(text), {}),
            last=take(written, "last", mapping(anything), {}),
            seconds=take(written, "seconds", finite, 0.0),
            shared=Shared.from_json(take(written, "shared", mapping(anything)))
            if "shared" in written
            else None,
        )

    def numbers(self) -> dict[str, float]:
        """Flatten what the selected checkpoint came to.

        `test_METRIC/DOMAIN`, its mean `test_METRIC` over the test domains, and `selected/MEAN`.
        """
        found = {f"test_{m}/{d}": v for m, of in self.test.items() for d, v in of.items()}
        for metric, of in self.test.items():
            known = [value for value in of.values() if value is not None]
            found[f"test_{metric}"] = sum(known) / len(known) if known else None
        found |= {f"selected/{name}": value for name, value in self.scores.means.items()}
        return {name: float(value) for name, value in found.items() if value is not None}
