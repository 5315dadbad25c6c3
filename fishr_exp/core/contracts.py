"""The few types that every room passes on: domain, minibatch, batch, model, trainer, objective.

Shapes: D domains in a batch, n samples of one domain, N samples of all, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

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


@dataclass(frozen=True)
class Facts:
    """What a run knows before its first step, for a trainer that builds networks of its own."""

    domains: tuple[str, ...]  # names of the D training domains, in the order of a batch
    classes: int
    features: int  # F, inputs of the classifier
    steps: int  # optimizer updates in all, at most


Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [n, C] (or [n, 1] for two classes) and labels [n] to a loss of each sample, [n]."""

Overrides = Mapping[str, Any]
"""Keywords of the optimizer in place of the configured ones: `lr`, `weight_decay`, `betas`, ..."""

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]
"""Parameters as `torch.optim` takes them: tensors, or groups `{"params": ..., "lr": ...}`.

In a group, `lr_factor` multiplies the configured learning rate.
"""


class Objective(NamedTuple):
    """What a trainer minimizes in one update.

    Attributes:
        total: Scalar, with graph; with `gradients` given, a value to record.
        logs: Scalars to record, with `risk` and `objective` among those of a step.
        player: Who is updated: a name of `Trainer.players`, or several that move together.
        gradients: The direction of the update where it is no gradient of `total`: one tensor for
            each parameter of the player, in their order, None for those that stay.
    """

    total: Tensor
    logs: dict[str, Tensor]
    player: str | tuple[str, ...] = "model"
    gradients: Sequence[Tensor | None] | None = None


class Trainer(nn.Module):
    """A method: what is minimized at each step, and by whom.

    A method is one subclass with `objective`. Everything else that the loop and the tools ask for
    stands here with a default. It knows no optimizer, device or configuration. Its modules and
    buffers move to the device, are checked for NaN, and are saved with the run; state that is
    neither belongs into `get_extra_state`.

    Args:
        loss: Of each sample.

    Attributes:
        min_domains: Training domains that it needs.
        gamma: Weight of its penalty; None where it has none.
        anneal_steps: Updates before the penalty acts. Early stopping counts from there.
        penalty_interval: The penalty acts at every so many steps.
        resets: Step -> the optimizers are made from scratch before it, with these overrides.
        matched: Keywords of `gradient_variance` (`scope`, ...) for the gradient variances that
            diagnostics look at; by default those of the classifier.
        refuses_compile: Why its featurizer cannot be compiled, and the fix; empty where it can.
        refuses_autocast: Why it cannot run under autocast, and the fix; empty where it can.
    """

    min_domains: int = 1
    gamma: float | None = None
    anneal_steps: int = 0
    penalty_interval: int = 1
    resets: Mapping[int, Overrides] = {}
    matched: Mapping[str, Any] = {}
    refuses_compile: str = ""
    refuses_autocast: str = ""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build networks of its own, before the optimizers are made; called once a run.

        Args:
            model: On the CPU, with its initial weights.
            facts: Of the run.

        Returns:
            The model that is trained and evaluated: `model` itself, or one that predicts otherwise.
        """
        del facts
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """Say who is optimized, each by an optimizer of its own; called after `prepare`.

        Every trainable parameter of the model and of the trainer has an owner. By default the one
        player `model` owns them all.
        """
        return {"model": trainable(model, self)}

    def objective(self, model: Model, batch: Batch, step: int) -> Objective | Iterator[Objective]:
        """Return what is minimized at a step, after `step` updates of the run.

        One objective is one update of one player. A method that updates several in turn yields
        them one after another (`yield Objective(...)`): each is computed when the update before it
        is done, from the weights that it left.
        """
        raise NotImplementedError


class Averaging(nn.Module):
    """Averages the weights along the way; what it returns is evaluated and kept as the best.

    Its buffers and extra state are saved with the run. Subclasses override what they need.
    """

    def prepare(self, model: Model) -> None:
        """Look at the model before the first step; it is on the device already."""

    def after_step(self, model: Model, step: int) -> None:
        """Look at the weights after `step` updates."""

    def after_evaluation(self, numbers: Mapping[str, float]) -> None:
        """Look at an evaluation: losses, means (`validation_loss`), and METRIC/DOMAIN/PART."""

    def averaged(self, model: Model) -> Model:
        """Return the model to evaluate in place of `model`, which stays as it is."""
        return model


def trainable(*modules: nn.Module) -> list[Tensor]:
    """Return the parameters of the modules that are trained, each once."""
    every = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(every.values())
