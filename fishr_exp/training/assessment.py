"""A trained run's network on its own data again, or on other data: one pass per domain."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fishr_exp.core.contracts import Domains, Loss, Minibatch, Model
from fishr_exp.core.errors import ConfigError, some
from fishr_exp.data.digests import changes, digests
from fishr_exp.data.minibatches import chunks
from fishr_exp.gradient_variance import UnsupportedError
from fishr_exp.runs.evaluated import WHOLE, Evaluated, EvaluatedRun
from fishr_exp.runs.facts import ModelFacts
from fishr_exp.runs.reading import Run
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.built import as_domains, build_part, check_fit, two_samples
from fishr_exp.training.calibration import Reliability, probabilities
from fishr_exp.training.counts import check_counts
from fishr_exp.training.evaluation import METRICS, Counts, count, measure, predictions
from fishr_exp.training.members import Member
from fishr_exp.training.precision import PRECISIONS, autocast
from fishr_exp.training.prepare import find_device, split_domains
from fishr_exp.training.trained import trained_model

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the predictions of samples."""

    def __call__(
        self,
        run: Path,
        domain: str,
        part: str,
        places: Sequence[str | int],  # paths, or positions in the domain
        labels: Sequence[int],
        predicted: Sequence[int],
        probability: Sequence[Sequence[float]],  # of each class
        classes: Sequence[str],
    ) -> None: ...


def assess(
    run: Run,
    arguments: Arguments,
    asked: Arguments,
    *,
    other_data: bool,
    domains: Sequence[str] = (),
    sink: Sink | None = None,
) -> EvaluatedRun:
    """Evaluate the checkpoint that is a run's result.

    On the run's own data, training domains are evaluated on their two parts, and test domains on
    all samples; on other data, every domain on all samples.

    Args:
        run: The run.
        arguments: What prepares it.
        asked: The same, with the data, device, precision and so on of the evaluation.
        other_data: Whether other data were asked for. They may turn out to be the run's own.
        domains: Names of the domains to evaluate; none: all.
        sink: Takes the predictions.

    Raises:
        ConfigError: If the run has no checkpoint, or the data do not fit it.
    """
    if asked.precision not in PRECISIONS:
        raise ConfigError("precision", asked.precision, f"choose from {', '.join(PRECISIONS)}")
    check_counts(asked)
    device = find_device(asked.device)
    Member.of(run, arguments)  # without its weights, no data need be read
    data = as_domains(asked.dataset())
    facts = ModelFacts.read(run.path)
    own = not other_data or dict(run.data) == digests(data.by_name)
    classes, numbers, notes = _classes(run, facts, arguments, data, own)
    if own and run.data and (changed := changes(run.data, digests(data.by_name))):
        log.warning("%s: the data have changed since this run: %s", run.path, changed)
    if unknown := [name for name in domains if name not in data.by_name]:
        reason = f"{data.name} has no domain {unknown[0]}"
        hint = f"choose from {', '.join(data.by_name)}"
        raise ConfigError("--domains", ",".join(domains), reason, hint)
    model = trained_model(run, arguments).to(device)
    check_fit(model, two_samples(data), len(classes), run.model)
    outputs = model.classifier.out_features
    classes = [*classes, *map(str, range(len(classes), outputs))]  # of a larger layer
    if asked.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = build_part(asked.loss, "loss", asked.config, UnsupportedError)
    parts = split_domains(arguments, data) if own else _whole(data)
    names = [name for name in data.by_name if not domains or name in domains]
    pass_ = _Pass(run, asked, model, loss, device, data, classes, numbers, sink)
    total = sum(len(indices) for name in names for indices in parts[name].values())
    found: list[Evaluated] = []
    with tqdm(
        desc=f"evaluating {run.path.name}", total=total, unit="sample", leave=False, delay=1,
        disable=None, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for name in names:
            counted = {
                part: pass_.over(name, part, indices, bar)
                for part, indices in parts[name].items()
                if len(indices)
            }
            found += _rows(name, _role(run, name, own), counted)
    if own:
        notes.append(_beside_result(run, found))
    return EvaluatedRun(
        str(run.path), run.method, run.step, data.name, own, classes, found,
        [note for note in notes if note],
    )  # fmt: skip


Counted = tuple[Counts, Reliability]


class _Pass:
    """Passes over samples of a domain with one network."""

    def __init__(
        self,
        run: Run,
        asked: Arguments,
        model: Model,
        loss: Loss,
        device: torch.device,
        data: Domains,
        classes: list[str],
        numbers: Tensor | None,
        sink: Sink | None,
    ) -> None:
        self._run, self._asked, self._model, self._loss = run, asked, model, loss
        self._device, self._data, self._classes, self._sink = device, data, classes, sink
        self._numbers = numbers  # label of the data -> label of the run

    def over(self, name: str, part: str, indices: Tensor, bar: tqdm[Any]) -> Counted:
        """Count what the network does on samples of a domain."""
        domain = self._data.by_name[name]
        paths: Sequence[str] = getattr(domain, "paths", ())
        reliability = Reliability(self._device)
        place = 0

        def read() -> Iterator[Minibatch]:
            for chunk in chunks(
                domain,
                indices,
                self._asked.evaluation_batch_size,
                num_workers=self._asked.num_workers,
                pin_memory=self._device.type == "cuda",
            ):
                minibatch = chunk.to(self._device)
                y = minibatch.y
                if self._numbers is not None:
                    y = self._numbers.to(self._device)[y]
                yield Minibatch(minibatch.x, y)
                bar.update(len(y))

        def look(logits: Tensor, y: Tensor) -> None:
            nonlocal place
            probability, predicted = probabilities(logits), predictions(logits)
            reliability.add(probability, predicted, y)
            if self._sink:
                at = indices[place : place + len(y)].tolist()
                place += len(y)
                self._sink(
                    self._run.path, name, part, [paths[i] for i in at] if paths else at,
                    y.tolist(), predicted.tolist(), probability.tolist(), self._classes,
                )  # fmt: skip

        context = autocast(self._asked.precision, self._device)
        counts = count(
            self._model, read(), self._loss, len(self._classes), self._device, context, look
        )
        return counts, reliability


def _rows(name: str, role: str, counted: Mapping[str, Counted]) -> Iterator[Evaluated]:
    """Return a training domain's parts, or any other domain as a whole."""
    if role != "training":
        first, *others = counted.values()
        for more in others:
            first = first[0] + more[0], first[1] + more[1]
        counted = {WHOLE: first}
    for part, (counts, reliability) in counted.items():
        confusion = tuple(map(tuple, counts.confusion.tolist()))
        metrics = measure(counts, [*METRICS])
        yield Evaluated(name, part, role, metrics, confusion, reliability.bins())


def _role(run: Run, name: str, own: bool) -> str:
    if not own:
        return "other"
    return "test" if name in run.test_domains else "training"


def _whole(data: Domains) -> dict[str, dict[str, Tensor]]:
    return {name: {WHOLE: torch.arange(len(domain))} for name, domain in data.by_name.items()}


def _classes(
    run: Run, facts: ModelFacts | None, arguments: Arguments, data: Domains, own: bool
) -> tuple[list[str], Tensor | None, list[str]]:
    """Return the run's classes, the label of the run for each label of the data, and notes.

    Raises:
        ConfigError: If the data have classes that the run does not have.
    """
    theirs = list(data.class_names)
    if own:
        return theirs or [str(number) for number in range(data.num_classes)], None, []
    if facts is None:  # of an earlier version: its own data know
        known = as_domains(arguments.dataset())
        ours, expected = list(known.class_names), known.num_classes
    else:
        ours, expected = list(facts.class_names), facts.num_classes
    by_number = not (ours and theirs) or _are_numbers(ours) != _are_numbers(theirs)
    if by_number:
        if data.num_classes != expected:
            reason = f"has {data.num_classes} classes, and {run.path} was trained on {expected}"
            raise ConfigError("dataset", data.name, reason, "pass data with the same classes")
        note = "Classes are matched by their number, since they are not all named."
        names = ours if ours and not _are_numbers(ours) else theirs or ours
        return names or [str(number) for number in range(expected)], None, [note]
    if unknown := [name for name in theirs if name not in ours]:
        reason = (
            f"has classes that {run.path} was not trained on ({some(unknown)}), which knows "
            f"{some(ours)}"
        )
        hint = "pass data with the same classes, or map folders: dataset.class_map={CLASS:[FOLDER]}"
        raise ConfigError("dataset", data.name, reason, hint)
    absent = [name for name in ours if name not in theirs]
    notes = [f"Classes that are not in these data: {some(absent)}."] if absent else []
    numbers = [ours.index(name) for name in theirs]
    return ours, torch.tensor(numbers), notes


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _beside_result(run: Run, found: Sequence[Evaluated]) -> str:
    """Say whether the test accuracies are those that the run recorded."""
    pairs = [
        (of.metrics["accuracy"], run.test_accuracy[of.domain])
        for of in found
        if of.domain in run.test_accuracy
    ]
    if not pairs:
        return ""
    gap = max(abs((here or 0.0) - there) for here, there in pairs)
    if gap == 0:
        return "Test accuracies are those in result.json."
    return f"Test accuracies differ from result.json by up to {100 * gap:.2g} points."
