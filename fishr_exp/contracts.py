"""The few types that every room passes on: domain, minibatch, batch, model, objective.

Shapes: D domains in a batch, n samples of one domain, N samples of all, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Minibatch(NamedTuple):
    """Samples of one domain."""

    x: Tensor  # [n, *input_shape], float32
    y: Tensor  # [n], int64

    def to(self, device: torch.device) -> Minibatch:
        """Move to a device."""
        return Minibatch(self.x.to(device, non_blocking=True), self.y.to(device, non_blocking=True))


class Domain(Protocol):
    """The images and labels of one domain, read by index."""

    name: str

    def __len__(self) -> int: ...

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the samples at `indices` ([n], int64).

        With `augment`, images are augmented by draws from that generator alone; without, they are
        as they are evaluated.
        """
        ...


@dataclass(frozen=True)
class Domains:
    """A dataset: its domains by name, in the order that its authors use."""

    name: str
    by_name: Mapping[str, Domain]
    num_classes: int
    input_shape: tuple[int, ...]  # of one sample, channels first
    skipped: Mapping[str, int] = field(default_factory=dict)  # domain -> samples left out as broken


@dataclass(frozen=True)
class Batch:
    """One minibatch of each training domain, one behind the other, in a fixed order of domains."""

    x: Tensor  # [N, *input_shape]
    y: Tensor  # [N]
    sizes: tuple[int, ...]  # D sizes, which add up to N; they may differ

    @classmethod
    def join(cls, minibatches: Sequence[Minibatch]) -> Batch:
        """Put the minibatches of the domains one behind the other."""
        return cls(
            torch.cat([m.x for m in minibatches]),
            torch.cat([m.y for m in minibatches]),
            tuple(len(m.y) for m in minibatches),
        )

    def by_domain(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split `values` ([N, ...]) into D tensors [n, ...], one a domain."""
        return values.split(self.sizes)


class Model(nn.Module):
    """A featurizer and a linear classifier; logits [n, C], or [n, 1] for two classes."""

    def __init__(self, featurizer: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map x [n, *input_shape] to logits [n, C]."""
        return self.classifier(self.featurizer(x))


class Objective(NamedTuple):
    """What a method minimises at one step."""

    total: Tensor  # scalar, with graph
    logs: dict[str, Tensor]  # scalars to record, with `risk` among them
