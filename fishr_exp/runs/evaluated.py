"""What `fishr-eval` finds out about a run, typed and plain: it is computed, written and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WHOLE = "all"  # the part that is all samples of a domain


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence, the highest probability, is in (low, high]."""

    low: float
    high: float
    samples: int
    confidence: float | None  # mean; None of no samples
    accuracy: float | None


@dataclass(frozen=True)
class Evaluated:
    """What a model does on samples of a domain.

    Attributes:
        domain: Its name.
        part: `train`, `validation`, or `all`.
        role: What the domain was to the run: `training`, `test`, or `other`.
        metrics: By name, fractions and the mean loss.
        confusion: [C][C], samples of class i (row) that were taken for class j.
        bins: Of the confidence.
    """

    domain: str
    part: str
    role: str
    metrics: Mapping[str, float | None]
    confusion: Sequence[Sequence[int]]
    bins: Sequence[Bin]

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(map(sum, self.confusion))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, in [0, 1].

        The mean over samples of |accuracy - confidence| of their bin.

        Source:
            Guo et al. 2017 (arXiv:1706.04599), equation 3.
        """
        gaps = [
            bin.samples * abs(bin.accuracy - bin.confidence)
            for bin in self.bins
            if bin.accuracy is not None and bin.confidence is not None
        ]
        return sum(gaps) / self.samples

    @property
    def title(self) -> str:
        """The domain, and the part if it is not all of it."""
        return self.domain if self.part == WHOLE else f"{self.domain}, {self.part}"


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's network on the domains of a dataset.

    Attributes:
        run: The run's folder.
        method: What tables call its method.
        step: Of the checkpoint.
        dataset: What the dataset is called.
        own: Whether it is the run's own, with its splits.
        classes: Names, in the order of the labels.
        domains: What was evaluated.
        notes: Sentences about it.
    """

    run: str
    method: str
    step: int
    dataset: str
    own: bool
    classes: Sequence[str]
    domains: Sequence[Evaluated]
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """What was evaluated on what."""
        return f"{self.method}, step {self.step}, on {self.dataset}"

    @property
    def unseen(self) -> list[Evaluated]:
        """Of each domain once, samples that it was not trained on, if there are any."""
        found = [of for of in self.domains if of.part != "train"]
        return found or list(self.domains)

    @property
    def worst(self) -> Evaluated:
        """The domain of the lowest accuracy, among `unseen`."""
        return min(self.unseen, key=lambda of: of.metrics["accuracy"] or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written."""
        written = asdict(self)
        for of, values in zip(self.domains, written["domains"], strict=True):
            values["samples"] = of.samples
            values["calibration_error"] = of.calibration_error
        return {**written, "worst_domain": self.worst.domain}
