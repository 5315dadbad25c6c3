"""A run that is ready for its first step: its parts, and what is done with them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from fishr_exp.core import distributed
from fishr_exp.core.contracts import (
    Batch,
    Domain,
    Domains,
    Loss,
    Minibatch,
    Model,
    printed_name,
)
from fishr_exp.data.digests import digests
from fishr_exp.data.minibatches import Minibatches, chunks, loader
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.records import PARTS, Outline, Scores
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.averaging.batch_norm import learning_norms, recompute_statistics
from fishr_exp.training.diagnostics import diagnose
from fishr_exp.training.evaluation import Counts, count, measure
from fishr_exp.training.loop import Training
from fishr_exp.training.signals import Signals
from fishr_exp.training.step import Autocast


@dataclass
class Prepared:
    """A run that is ready for its first step."""

    arguments: Arguments
    device: torch.device
    domains: Domains
    training_domains: list[str]
    parts: Mapping[str, Mapping[str, Tensor]]  # domain -> part -> indices
    streams: Sequence[Minibatches]  # of the training domains
    loss: Loss
    training: Training
    autocast: Autocast
    total_steps: int
    steps_per_epoch: int
    not_diagnosed: set[str] = field(default_factory=set)  # see `diagnose`

    @property
    def outline(self) -> Outline:
        """What the run is, as it is recorded."""
        return Outline(
            labels=self.arguments.labels,
            method=printed_name(self.training.trainer),
            gamma=self.training.trainer.gamma,
            seed=self.arguments.seed,
            training_domains=self.training_domains,
            test_domains=self.arguments.test_domains,
        )

    @property
    def model_facts(self) -> ModelFacts:
        """What the network was built for."""
        scaled = self.domains.normalization
        return ModelFacts(
            input_shape=tuple(self.domains.input_shape),
            num_classes=self.domains.num_classes,
            class_names=tuple(self.domains.class_names),
            training_domains=tuple(self.training_domains),
            steps=self.total_steps,
            normalization=scaled and {"mean": [*scaled[0]], "std": [*scaled[1]]},
        )

    @property
    def data(self) -> dict[str, str]:
        """What the data are: for each domain, the number of samples and a digest."""
        return digests(self.domains.by_name)

    @property
    def evaluated(self) -> Sequence[str]:
        """The parts that an evaluation between two epochs is over."""
        return PARTS if self.arguments.evaluate_train else PARTS[1:]

    def loaders(self, stop: int | None = None) -> list[Iterable[Minibatch]]:
        """Return what reads the minibatches of each training domain.

        From the current step on until step `stop`, or else to the end. Each call has its own.
        """
        return [
            loader(
                copy.copy(stream),
                self.training.step,
                self.total_steps if stop is None else stop,
                num_workers=self.arguments.num_workers,
                pin_memory=self.device.type == "cuda",
            )
            for stream in self.streams
        ]

    def averaged(self, signals: Signals) -> Model:
        """Return the model to evaluate: that of the averaging scheme.

        Raises:
            InterruptedEvaluationError: If a signal waits.
        """
        model = self.training.averaging.averaged(self.training.model)
        if model is not self.training.model:
            self.recompute_statistics(model, self.training.averaging.batch_norm_steps, signals)
        return model

    def selected(self, signals: Signals) -> tuple[Model, int]:
        """Return the result of an averaging scheme that selects, and the last update in it.

        Raises:
            InterruptedEvaluationError: If a signal waits.
        """
        model, step = self.training.averaging.selected(self.training.model)
        self.recompute_statistics(model, self.training.averaging.batch_norm_steps, signals)
        return model, step

    def recompute_statistics(self, model: Model, steps: int, signals: Signals) -> None:
        """Take a model's BatchNorm statistics from the next minibatches, where it is not frozen.

        Args:
            model: With averaged weights.
            steps: The number of minibatches; 0 leaves the statistics as they are.
            signals: Those that interrupt.
        """
        norms = learning_norms(model) if steps else []
        if not norms:
            return
        if all(stream.constant for stream in self.streams):
            steps = 1  # the others are the same
        read = [signals.interrupting(of) for of in self.loaders(self.training.step + steps)]

        def inputs() -> Iterator[Tensor]:
            for minibatches in zip(*read, strict=True):
                yield Batch.join([minibatch.to(self.device) for minibatch in minibatches]).x

        recompute_statistics(model, norms, inputs(), self.autocast)

    def count(
        self, model: Model, parts: Sequence[str], signals: Signals
    ) -> dict[str, dict[str, Counts]]:
        """Evaluate a model on parts of all domains: one pass for each domain and part.

        Raises:
            InterruptedEvaluationError: If a signal waits.
        """
        total = sum(len(self.parts[name][part]) for name in self.domains.by_name for part in parts)
        bar = tqdm(
            desc="evaluating", total=total, unit="sample", leave=False, delay=2,
            disable=None if distributed.is_first() else True, dynamic_ncols=True,
        )  # fmt: skip

        def read(domain: Domain, indices: Tensor) -> Iterator[Minibatch]:
            chunk = chunks(
                domain,
                indices,
                self.arguments.evaluation_batch_size,
                num_workers=self.arguments.num_workers,
                pin_memory=self.device.type == "cuda",
                shard=(distributed.rank(), distributed.world_size()),
            )
            for minibatch in signals.interrupting(chunk):
                yield minibatch
                bar.update(len(minibatch.y) * distributed.world_size())

        classes = max(self.domains.num_classes, model.classifier.out_features)
        with bar:
            return {
                name: {
                    part: count(
                        model, read(domain, self.parts[name][part]), self.loss, classes,
                        self.device, self.autocast,
                    )
                    for part in parts
                }
                for name, domain in self.domains.by_name.items()
            }  # fmt: skip

    def scores(self, counted: Mapping[str, Mapping[str, Counts]]) -> Scores:
        """Read the run's metrics off what was counted."""
        asked = self.arguments.metrics
        measured = {
            name: {part: measure(parts.get(part), asked) for part in PARTS}
            for name, parts in counted.items()
        }
        by_domain = {
            metric: {n: {p: measured[n][p][metric] for p in PARTS} for n in measured}
            for metric in measure(None, asked)
        }
        means = {
            f"{part}_{metric}": _mean([of[name][part] for name in self.training_domains])
            for metric, of in by_domain.items()
            for part in PARTS
        }
        return Scores(by_domain, means)

    def test_scores(
        self, counted: Mapping[str, Mapping[str, Counts]]
    ) -> dict[str, dict[str, float | None]]:
        """Read the run's metrics in each test domain, over all its samples: metric -> domain."""
        asked = self.arguments.metrics
        whole = {
            name: measure(counted[name]["train"] + counted[name]["validation"], asked)
            for name in self.arguments.test_domains
        }
        return {m: {name: whole[name][m] for name in whole} for m in measure(None, asked)}

    def test_accuracy(self, scores: Scores) -> dict[str, float]:
        """Return the accuracy on each test domain, over the samples of the parts that it was on."""
        found = {}
        for name in self.arguments.test_domains:
            of = {p: v for p, v in scores.of("accuracy", name).items() if v is not None}
            sizes = {part: len(self.parts[name][part]) for part in of}
            if any(sizes.values()):
                found[name] = sum(of[p] * sizes[p] for p in of) / sum(sizes.values())
        return found

    def diagnose(self) -> dict[str, float | None] | None:
        """Look at trainer and model on the run's first batch, if that was asked for."""
        if not self.arguments.diagnostics:
            return None
        batch = Batch.join([stream[0] for stream in self.streams])
        batch = Batch(batch.x.to(self.device), batch.y.to(self.device), batch.sizes)
        trainer, model, step = self.training.trainer, self.training.model, self.training.step
        return diagnose(
            trainer, model, batch, self.training_domains, step, self.loss,
            all_parameters=self.arguments.diagnostics == "all", refused=self.not_diagnosed,
        )  # fmt: skip


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
