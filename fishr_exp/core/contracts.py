"""The types that all packages share: domain, minibatch, batch, model, trainer, objective.

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
    """The images and labels of one domain, read by index.

    A domain may have an attribute `digest`, text that is another one when the names or labels of
    its samples change: a run is then not continued over other data (`data/digests.py`). It may have
    an attribute `validation`, the indices of its validation part (`data/splits.py`), and `labels`,
    int64 [N], without which samples cannot be drawn by class (`data/sampling.py`).
    """

    name: str

    def __len__(self) -> int: ...

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the samples at `indices` ([n], int64).

        With `augment`, images are augmented by draws from that generator only; without it, they
        are read as for evaluation.
        """
        ...


@dataclass(frozen=True)
class Domains:
    """A dataset: its domains by name, in the order of its authors.

    Attributes:
        name: The dataset's name.
        by_name: The domains.
        num_classes: Number of classes.
        input_shape: Shape of one sample, channels first.
        skipped: Domain -> number of samples that cannot be read.
        class_names: In the order of the labels; empty if they have none but their numbers.
        normalization: Mean and standard deviation of each channel by which `read` scales values in
            [0, 1]; None if it does not.
    """

    name: str
    by_name: Mapping[str, Domain]
    num_classes: int
    input_shape: tuple[int, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Batch:
    """One minibatch of each training domain, concatenated in a fixed order of domains."""

    x: Tensor  # [N, *input_shape]
    y: Tensor  # [N]
    sizes: tuple[int, ...]  # D sizes, which add up to N; they may differ

    @classmethod
    def join(cls, minibatches: Sequence[Minibatch]) -> Batch:
        """Concatenate the minibatches of the domains."""
        return cls(
            torch.cat([m.x for m in minibatches]),
            torch.cat([m.y for m in minibatches]),
            tuple(len(m.y) for m in minibatches),
        )

    def by_domain(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split `values` ([N, ...]) into D tensors [n, ...], one per domain."""
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
    """What is known before the first step, for a trainer that builds its own networks."""

    domains: tuple[str, ...]  # names of the D training domains, in the order of a batch
    classes: int
    features: int  # F, inputs of the classifier
    steps: int  # maximum number of steps
    input_shape: tuple[int, ...] = ()  # of one sample, channels first


Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [n, C] (or [n, 1] for two classes) and labels [n] to per-sample losses [n]."""

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
        logs: Scalars to record, with `risk` among those of a step; `objective` is `total` unless
            it is given.
        player: The player that is updated: a name in `Trainer.players`, or several names that are
            updated together.
        gradients: The direction of the update if it is not the gradient of `total`: one tensor for
            each parameter of the player, in order, None for those that do not change.
    """

    total: Tensor
    logs: dict[str, Tensor]
    player: str | tuple[str, ...] = "model"
    gradients: Sequence[Tensor | None] | None = None


class Trainer(nn.Module):
    """A method: what is minimized at each step, and which parameters are updated.

    A method is one subclass with `objective`. Everything else that the loop and the tools need
    is defined here with a default. It does not know the optimizer, device or configuration. Its
    modules and buffers move to the device, are checked for NaN, and are saved with the run; state
    that is neither belongs in `get_extra_state`.

    Args:
        loss: Per-sample loss.

    Attributes:
        printed_name: What tables and figures call it; by default the name of its class.
        min_domains: Minimum number of training domains.
        gamma: Weight of its penalty, where 0 is ERM; None if it has none.
        anneal_steps: Updates before the penalty acts. Early stopping counts from there.
        penalty_interval: Number of steps from one step with the penalty to the next.
        acts_from: Keyword of its own -> updates before its value has any effect. Runs of a sweep
            that differ in such keywords only share the steps before (`training/trunk.py`). Of a
            keyword in a mapping the path, as in `penalties.fishr.gamma`.
        resets: Step -> overrides with which the optimizers are recreated before that step.
        matched: Keywords of `gradient_variance` (`scope`, ...) for the gradient variances in the
            diagnostics; by default those of the classifier.
        refuses_compile: Why its featurizer cannot be compiled, and the fix; empty if it can.
        refuses_autocast: Why it cannot run under autocast, and the fix; empty if it can.
        refuses_processes: Why several processes cannot train it; empty if they can.
    """

    printed_name: str = ""
    min_domains: int = 1
    gamma: float | None = None
    anneal_steps: int = 0
    penalty_interval: int = 1
    acts_from: Mapping[str, int] = {}
    resets: Mapping[int, Overrides] = {}
    matched: Mapping[str, Any] = {}
    refuses_compile: str = ""
    refuses_autocast: str = ""
    refuses_processes: str = ""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build its own networks before the optimizers are created; called once per run.

        Args:
            model: On the CPU, with its initial weights.
            facts: Facts of the run.

        Returns:
            The model to train and evaluate: `model` itself, or one that predicts differently.
        """
        del facts
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """Return the players, each with its own optimizer; called after `prepare`.

        Every trainable parameter of the model and of the trainer belongs to a player. By default
        the only player, `model`, has all of them.
        """
        return {"model": trainable(model, self)}

    def objective(self, model: Model, batch: Batch, step: int) -> Objective | Iterator[Objective]:
        """Return what is minimized at a step, after `step` updates of the run.

        One objective is one update of one player. A method that updates several in turn yields
        them one after another (`yield Objective(...)`): each is computed after the previous update,
        from the updated weights.
        """
        raise NotImplementedError


def printed_name(trainer: nn.Module) -> str:
    """Return what tables call a method: its class's own `printed_name`, or its class's name.

    A trainer that is named by its settings sets its own attribute.
    """
    # Not inherited: a subclass of Fishr is another method.
    of_class, of_itself = (vars(each).get("printed_name") for each in (type(trainer), trainer))
    return str(of_class or of_itself or type(trainer).__name__)


class Averaging(nn.Module):
    """Averages the weights during training; the averaged model is evaluated and kept as the best.

    Its buffers and extra state are saved with the run. Subclasses override what they need.

    Attributes:
        printed_name: What results call it; by default the name of its class.
        selects: Whether it chooses the run's result itself, by `selected`. Early stopping then
            neither chooses the result nor ends the training.
        monitor: What it needs of every evaluation, such as `validation_loss`; a run that does not
            measure it is refused before the first step.
        first_step: The first step whose weights are in the average.
        batch_norm_steps: Minibatches over which the BatchNorm statistics of an averaged model are
            recomputed before it is evaluated, where BatchNorm is not frozen; 0: they stay as the
            scheme leaves them.
    """

    printed_name: str = ""
    selects: bool = False
    monitor: str = ""
    first_step: int = 1
    batch_norm_steps: int = 0

    @property
    def stop(self) -> bool:
        """Whether to end the training; asked after every evaluation."""
        return False

    def prepare(self, model: Model) -> None:
        """Prepare for the model before the first step; it is already on the device."""

    def after_step(self, model: Model, step: int) -> None:
        """Use the weights after `step` updates."""

    def after_evaluation(self, numbers: Mapping[str, float]) -> None:
        """Use an evaluation: losses, means (`validation_loss`), and METRIC/DOMAIN/PART."""

    def averaged(self, model: Model) -> Model:
        """Return the model to evaluate in place of `model`, which is not changed."""
        return model

    def selected(self, model: Model) -> tuple[Model, int]:
        """Return the run's result, and the last update in it, after the last step.

        Called of a scheme that `selects` only. It may be called again, and changes nothing.
        """
        raise NotImplementedError


def trainable(*modules: nn.Module) -> list[Tensor]:
    """Return the trainable parameters of the modules, each once."""
    every = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(every.values())
