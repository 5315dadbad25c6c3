"""What is written about a run, typed: one evaluation, and the result.

Values are plain: fractions in [0, 1] for accuracies, seconds, counts. The keys in the files are
those that every version has written; a new metric adds keys of the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("train", "validation")
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
        """Read them from a record or a result, of whatever metrics there are."""
        by_domain = {
            key: value
            for key, value in written.items()
            if key != "counts" and isinstance(value, Mapping) and _is_by_domain(value)
        }
        means = tuple(f"{part}_" for part in PARTS)
        return cls(by_domain, {k: v for k, v in written.items() if k.startswith(means)})


def _is_by_domain(value: Mapping[str, Any]) -> bool:
    inner = list(value.values())
    return bool(inner) and all(isinstance(of, Mapping) and set(of) <= {*PARTS} for of in inner)


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
        """Read a record of any version.

        Raises:
            KeyError: If a key is missing.
        """
        return cls(
            step=record["step"],
            epoch=record["epoch"],
            losses=record["losses"],
            scores=Scores.from_json(record),
            seconds_per_step=record.get("seconds_per_step", 0.0),
            seconds_waiting_per_step=record.get("seconds_waiting_per_step", 0.0),
            learning_rate=record.get("learning_rate", 0.0),
            diagnostics=record.get("diagnostics"),
            seconds=record.get("seconds", 0.0),
            time=record.get("time"),
        )


@dataclass(frozen=True)
class Selected:
    """Which checkpoint is the result."""

    step: int
    epoch: int
    monitor: str  # what it was selected by
    uses_test_domain: bool
    penalty_had_acted: bool


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
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is written."""
        return {
            "status": "done",
            **self.outline.to_json(),
            "selected": dict(vars(self.selected)),
            **self.scores.to_json(),
            "counts": {domain: dict(parts) for domain, parts in self.counts.items()},
            **({"skipped": dict(self.skipped)} if self.skipped else {}),
            "data": dict(self.data),
            "last": dict(self.last),
            **{f"test_{metric}": dict(by_domain) for metric, by_domain in self.test.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Result:
        """Read a result of any version.

        Raises:
            KeyError: If a key is missing.
            TypeError: If a value is of another type.
        """
        scores = Scores.from_json(written)
        outline = Outline(
            labels=written["labels"],
            method=written.get("method"),
            gamma=written.get("gamma"),
            seed=int(written["seed"]),
            training_domains=[str(name) for name in written.get("training_domains", ())],
            test_domains=[str(name) for name in written["test_domains"]],
        )
        metrics = dict.fromkeys(["accuracy", *scores.by_domain])
        tests = {m: written[f"test_{m}"] for m in metrics if f"test_{m}" in written}
        return cls(
            outline=outline,
            selected=Selected(**{"penalty_had_acted": False, **written["selected"]}),
            scores=scores,
            test={"accuracy": written["test_accuracy"], **tests},
            counts=written.get("counts", {}),
            skipped=written.get("skipped", {}),
            data=written.get("data", {}),
            last=written.get("last", {}),
            seconds=written.get("seconds", 0.0),
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
