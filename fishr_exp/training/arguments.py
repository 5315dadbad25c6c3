"""The plain arguments of a run: what the configuration comes to, without Hydra."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch.optim.lr_scheduler import LRScheduler

from fishr_exp.core.contracts import Averaging, Domains, Loss, Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.sampling import Sampling
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.step import MakeOptimizer


class Mirror(Protocol):
    """A tracker: it mirrors the run folder."""

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def sync(self) -> None: ...

    def finish(self, status: str) -> None: ...


@dataclass(frozen=True)
class Grouping:
    """The keys of `optimizer` that are the run's, and not of what is built.

    Attributes:
        classifier_lr_factor: Learning rate of the model's classifier, as a multiple of that of
            its player, > 0.
        decay_norms_and_biases: Whether normalization layers and biases have the weight decay of
            the other parameters, or none.

    Raises:
        ConfigError: If the factor is outside its range.
    """

    classifier_lr_factor: float = 1.0
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        factor = self.classifier_lr_factor
        if not 0 < factor < math.inf:
            raise ConfigError("optimizer.classifier_lr_factor", factor, "must be more than 0")


@dataclass(frozen=True)
class Timing:
    """The keys of `scheduler` that are the run's, and not of what is built.

    Attributes:
        per: What the schedule counts: steps, or evaluations.
        monitor: The quantity of each evaluation that it looks at, as `validation_loss`; None if
            it looks at none.
    """

    per: Literal["step", "evaluation"] = "step"
    monitor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a run is asked to do. `conf/config.yaml` describes the keys.

    The parts, which come first, make what they are called when they are called.
    """

    dataset: Callable[[], Domains]
    model: Callable[..., Model]
    loss: Callable[[], Loss]
    trainer: Callable[..., Trainer]
    optimizer: MakeOptimizer
    scheduler: Callable[..., LRScheduler] | None
    observer: Callable[[], EarlyStopping]
    averaging: Callable[[], Averaging] | None
    tracker: Callable[[RunFolder], Mirror] | None
    seed: int
    test_domains: list[str]
    holdout_fraction: float
    limit_samples: int | None
    batch_size: int | Mapping[str, int | None] | None
    sampling: Sampling
    epochs: int | None
    total_steps: int | None
    steps_per_epoch: int | None
    metrics: list[str] = field(default_factory=lambda: ["accuracy", "loss"])  # of an evaluation
    evaluate_train: bool
    evaluation_batch_size: int
    clip_norm: float | None
    diagnostics: bool | Literal["all"]
    profile_steps: int | None
    tags: list[str]
    show_test_accuracy: bool
    num_workers: int
    device: str
    precision: str
    channels_last: bool
    compile: bool
    resume: bool
    retry_failed: bool
    checkpoint_every: int | str | None
    share_steps: bool | Literal["only"] = True
    data_seed: int | None = None  # of the splits; None: `seed`. A protocol sets it
    grouping: Grouping = Grouping()  # of the optimizer
    timing: Timing = Timing()  # of the scheduler
    labels: Mapping[str, str]  # what the parts are called: dataset, model, trainer
    config: Mapping[str, Any]  # the resolved configuration, to be recorded
