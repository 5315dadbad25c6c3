"""One run, read top to bottom: check, build, fit, evaluate, record."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fishr_exp import ranks, seeding
from fishr_exp.contracts import Batch, Domain, Domains, Minibatch, Model
from fishr_exp.data.minibatches import Minibatches, chunks, loader
from fishr_exp.data.splits import split
from fishr_exp.errors import ConfigError, TrainingError
from fishr_exp.gradient_variance import Loss
from fishr_exp.results.environment import environment
from fishr_exp.results.run_folder import RunFolder
from fishr_exp.runs.identity import settings
from fishr_exp.training.checkpoint import Checkpoints, Interval
from fishr_exp.training.diagnostics import diagnose
from fishr_exp.training.evaluation import accuracy
from fishr_exp.training.faster import autocast, compile_featurizer
from fishr_exp.training.loop import Training, fit
from fishr_exp.training.observer import Observer, Verdict
from fishr_exp.training.signals import InterruptedEvaluationError, Signals
from fishr_exp.training.step import Method

log = logging.getLogger(__name__)

PARTS = ("train", "validation")
T = TypeVar("T")


class Mirror(Protocol):
    """A tracker: it mirrors the run folder."""

    def start(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def catch_up(self, config: Mapping[str, Any], labels: Mapping[str, str]) -> None: ...

    def sync(self) -> None: ...

    def finish(self, status: str) -> None: ...


def run(  # noqa: D417 - conf/config.yaml describes the keys of the configuration
    *,
    dataset: Callable[[], Domains],
    model: Callable[..., Model],
    loss: Callable[[], Loss],
    trainer: Callable[..., Method],
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    observer: Callable[[], Observer],
    tracker: Callable[[RunFolder], Mirror] | None,
    seed: int,
    test_domains: list[str],
    holdout_fraction: float,
    batch_size: int | None,
    epochs: int | None,
    steps_per_epoch: int | None,
    evaluate_train: bool,
    evaluation_batch_size: int,
    num_workers: int,
    device: str,
    precision: str,
    channels_last: bool,
    compile: bool,
    resume: bool,
    retry_failed: bool,
    checkpoint_every: int | str | None,
    folder: Path,
    labels: Mapping[str, str],
    config: Mapping[str, Any],
    total_steps: int | None = None,
    data_seed: int | None = None,
    diagnostics: bool = False,
) -> dict[str, Any]:
    """Train one method on the training domains and evaluate it on all; return the result.

    Within `ranks.joined`, the ranks do so together, and only the first writes.

    The first seven arguments make the parts when called. The keys of `conf/config.yaml` are the
    arguments up to `checkpoint_every`, and are described there.

    Args:
        folder: The run folder. A done run found there is returned as it is, and a stopped one is
            continued, unless `resume` is false.
        labels: What the parts are called: `dataset`, `model`, `trainer`.
        config: The resolved configuration, to be recorded.
        total_steps: Updates in all, where `epochs` is None; the last epoch may have fewer.
        data_seed: Decides the splits; None: `seed`. A protocol sets it, and `total_steps`.

    Raises:
        ConfigError: If what was asked for cannot be; nothing was trained.
        TrainingError: If the run could not go on, or failed before; what it had written stays.
        Stopped: If a signal asked for it, after a checkpoint.
    """
    # --- check and build -------------------------------------------------------------------
    _check_counts(epochs, total_steps, steps_per_epoch, evaluation_batch_size, num_workers)
    where = _device(device)
    save_every = Interval(checkpoint_every)
    record_folder = RunFolder(folder)
    checkpoints = Checkpoints(record_folder.checkpoints, settings(config))
    state = ranks.from_first(lambda: record_folder.state) if resume else "planned"
    if state == "done":
        result = ranks.from_first(lambda: _done(record_folder, tracker, config, labels))
        if result is not None:
            return result
    if state == "failed" and not retry_failed:
        raise TrainingError(
            f"this run failed before ({_error(record_folder)}); "
            f"pass retry_failed=true to go on from its last checkpoint in {folder}"
        )
    criterion = _built(loss, "loss", config)
    method = trainer(loss=criterion)
    computing = autocast(precision, where, method)
    watcher = observer()
    domains = dataset()
    training_domains = _training_domains(domains, test_domains, method, labels["trainer"])
    if watcher.watches(test_domains):
        log.warning("observer.monitor=%s chooses by a test domain", watcher.monitor)
    split_seed = seed if data_seed is None else data_seed
    parts = {
        name: dict(zip(PARTS, split(domain, holdout_fraction, split_seed), strict=True))
        for name, domain in domains.by_name.items()
    }
    evaluated = PARTS if evaluate_train else PARTS[1:]
    _check_monitor(watcher.monitor, parts, training_domains, evaluated)
    part = (ranks.rank(), ranks.count())
    streams = [
        Minibatches(domains.by_name[name], parts[name]["train"], batch_size, seed, part)
        for name in training_domains
    ]
    steps = steps_per_epoch or min(stream.per_pass for stream in streams)
    total = epochs * steps if total_steps is None else total_steps  # type: ignore[operator]
    watcher.not_before = anneal_steps = getattr(method, "anneal_steps", 0)
    if anneal_steps >= total:
        log.warning(
            "trainer.anneal_steps=%d: trainer.gamma never acts in %d epochs of %d steps",
            anneal_steps,
            -(-total // steps),
            steps,
        )
    seeding.seed_global_streams(seed, "model")
    network = model(input_shape=domains.input_shape, num_classes=domains.num_classes).to(where)
    seeding.seed_global_streams(seed, "training")
    _check_batch_statistics(network, labels["model"])
    _check_loss(criterion, network, config)
    if channels_last:  # of the weights; images follow at the first convolution
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        compile_featurizer(network, method)
    training = _built(
        lambda: Training(network, method, optimizer, watcher, autocast=computing),
        "optimizer",
        config,
    )

    signals = Signals()

    def read(domain: Domain, indices: Tensor) -> Iterable[Minibatch]:
        pinned = where.type == "cuda"
        size = evaluation_batch_size
        return signals.interrupting(
            chunks(domain, indices, size, num_workers=num_workers, pin_memory=pinned, part=part)
        )

    right = functools.partial(accuracy, network, device=where, autocast=computing)
    evaluate = functools.partial(_evaluate, right, domains, parts, training_domains, read)
    look = _look(streams, network, method, where) if diagnostics else None

    # --- fit ---------------------------------------------------------------------------------
    with record_folder:
        reached = ranks.from_first(
            lambda: _open(record_folder, checkpoints, config, where, resume=resume)
        )
        if reached:
            training.load_state_dict(reached)
            log.info("continuing %s after step %d", folder, training.step)
        if not reached or len(reached["random"]) != ranks.count():
            _draw_apart(seed, training.step)
        mirror = tracker(record_folder) if tracker and ranks.first() else None
        if mirror:
            mirror.start(config, labels)

        started = time.perf_counter()
        earlier = record_folder.records()
        seconds_before = (earlier[-1]["seconds"] if earlier else 0.0) + training.seconds

        def on_evaluation(record: dict[str, Any], verdict: Verdict) -> None:
            if not ranks.first():
                return
            record["seconds"] = seconds_before + time.perf_counter() - started
            record["time"] = time.time()
            record_folder.append(record)
            if verdict.improved:
                checkpoints.save_best({"step": training.step, "model": network.state_dict()})

        def save() -> None:
            state = training.state_dict()
            if ranks.first():
                checkpoints.save(state)
            if mirror:
                mirror.sync()

        def measure() -> dict[str, Any]:
            looked = {"diagnostics": look(training.step)} if look else {}
            return {**evaluate(evaluated), **looked}

        outline = {
            "labels": dict(labels),
            "gamma": getattr(method, "gamma", None),
            "seed": seed,
            "training_domains": training_domains,
            "test_domains": test_domains,
        }
        with _failure_recorded(record_folder, mirror, outline), ranks.failing_together(), signals:
            fit(
                training,
                [
                    loader(
                        stream,
                        training.step,
                        total,
                        num_workers=num_workers,
                        pin_memory=where.type == "cuda",
                    )
                    for stream in streams
                ],
                measure,
                on_evaluation,
                save,
                save_every,
                signals,
                total_steps=total,
                steps_per_epoch=steps,
                title=folder.name,
            )
            chosen_step = training.step
            if watcher.keep == "best":
                kept = ranks.from_first(checkpoints.best)
                network.load_state_dict(kept["model"])
                chosen_step = kept["step"]
            log.info("evaluating all domains at step %d", chosen_step)
            chosen = _heeding(signals, lambda: evaluate(PARTS))
            if not ranks.first():
                return {"status": "done", **outline, **chosen}

            # --- record ------------------------------------------------------------------------
            counts = {name: {p: len(parts[name][p]) for p in PARTS} for name in parts}
            result = {
                "status": "done",
                **outline,
                "selected": {
                    "step": chosen_step,
                    "epoch": -(-chosen_step // steps),
                    "monitor": watcher.monitor if watcher.keep == "best" else "last step",
                    "uses_test_domain": watcher.keep == "best" and watcher.watches(test_domains),
                    "penalty_had_acted": bool(outline["gamma"]) and chosen_step > anneal_steps,
                },
                **chosen,
                "counts": counts,
                **({"skipped": dict(domains.skipped)} if domains.skipped else {}),
                "last": {
                    "step": training.step,
                    "accuracy": record_folder.records()[-1]["accuracy"],
                },
                "test_accuracy": {
                    name: _whole(chosen["accuracy"][name], counts[name]) for name in test_domains
                },
                "seconds": seconds_before + time.perf_counter() - started,
            }
            record_folder.finish(result)
            checkpoints.tidy()
        if chosen_step <= anneal_steps < training.step:
            log.warning(
                "the chosen step lies before trainer.anneal_steps=%d, as ERM's", anneal_steps
            )
        log.info("%s", _line(result))
        log.info("%s", folder)
        if mirror:  # it may have to wait
            mirror.finish("FINISHED")
    return result


def _open(
    folder: RunFolder,
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    device: torch.device,
    *,
    resume: bool,
) -> dict[str, Any] | None:
    """Take the folder; return the checkpoint to go on from, of a run that was stopped."""
    if not resume:
        folder.clear()
    folder.open(config)
    reached = checkpoints.newest()
    threads = torch.get_num_threads()
    try:
        folder.checkpoints.mkdir(exist_ok=True)
        folder.write_environment(environment(_device_name(device), threads, ranks.count()))
        # What was logged is not yet evaluated: the record of that step is still to come.
        folder.keep_until(reached["step"] - bool(reached["logged"]) if reached else 0)
    except OSError as error:
        raise TrainingError(f"{error}; records and checkpoints are in {folder.path}") from error
    return reached


def _heeding(signals: Signals, evaluate: Callable[[], T]) -> T:
    """Evaluate after the last checkpoint, where a signal finds nothing to save."""
    while True:
        try:
            return evaluate()
        except InterruptedEvaluationError:
            signals.obey(signals.pending)


def _draw_apart(seed: int, step: int) -> None:
    """From here on, let each rank draw its own dropout."""
    if not ranks.first():
        seeding.seed_global_streams(seed, "training", ranks.rank(), step)


def _done(
    folder: RunFolder,
    tracker: Callable[[RunFolder], Mirror] | None,
    config: Mapping[str, Any],
    labels: Mapping[str, str],
) -> dict[str, Any] | None:
    """Return the result of a run that is done, and bring its mirror up to date."""
    with folder:
        folder.open(config)  # refuses other settings
        result = folder.result()
        if result is not None:
            log.info("done already: %s (resume=false runs it anew)", folder.path)
            if tracker:
                tracker(folder).catch_up(config, labels)
        return result


def _error(folder: RunFolder) -> str:
    """Return why a run failed."""
    error = str((folder.result() or {}).get("error", ""))
    return error.removeprefix("TrainingError: ").partition("; records and")[0]


@contextlib.contextmanager
def _failure_recorded(
    folder: RunFolder, mirror: Mirror | None, outline: Mapping[str, Any]
) -> Iterator[None]:
    """Mark a run that fails as failed, in its folder and in the mirror; its records stay."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # see training/signals.py
        if ranks.first() and not stopped:
            with contextlib.suppress(OSError):  # a full disk may be why the run failed
                folder.fail(f"{type(error).__name__}: {error}", outline)
        if mirror:
            mirror.finish("KILLED" if stopped else "FAILED")
        if isinstance(error, TrainingError | OSError):
            raise TrainingError(f"{error}; records and checkpoints are in {folder.path}") from error
        raise


def _check_counts(
    epochs: int | None,
    total_steps: int | None,
    steps_per_epoch: int | None,
    evaluation_batch_size: int,
    num_workers: int,
) -> None:
    if (epochs is None) == (total_steps is None):
        mend = "pass epochs=NUMBER" if epochs is None else "pass epochs=null, or total_steps=null"
        given = "null" if total_steps is None else total_steps
        reason = f"exactly one of epochs and total_steps (={given}) must be given"
        raise ConfigError("epochs", epochs, reason, mend)
    for key, value, least in (
        ("epochs", epochs, 1),
        ("total_steps", total_steps, 1),
        ("steps_per_epoch", steps_per_epoch, 1),
        ("evaluation_batch_size", evaluation_batch_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(key, value, f"must be {least} or more")


def _training_domains(
    domains: Domains, test_domains: list[str], method: Method, trainer: str
) -> list[str]:
    """Return the domains to train on, in the dataset's order."""
    given = f"[{', '.join(test_domains)}]"
    known = list(domains.by_name)
    unknown = [name for name in test_domains if name not in known]
    if unknown:
        raise ConfigError(
            "test_domains", given, f"{domains.name} has no domain {unknown[0]}",
            f"choose from {', '.join(known)}",
        )  # fmt: skip
    if not test_domains or len(set(test_domains)) < len(test_domains):
        reason = "names a domain twice" if test_domains else "leaves no domain to test on"
        raise ConfigError("test_domains", given, reason, f"choose from {', '.join(known)}")
    training = [name for name in known if name not in test_domains]
    if len(training) < method.min_domains:
        most = len(known) - method.min_domains
        raise ConfigError(
            "test_domains", given,
            f"leaves {len(training)} of {len(known)} domains of {domains.name} to train on, "
            f"and trainer={trainer} needs {method.min_domains}",
            f"choose at most {most}" if most > 0 else "choose another dataset or trainer",
        )  # fmt: skip
    return training


def _check_monitor(
    monitor: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: list[str],
    evaluated: tuple[str, ...],
) -> None:
    """Refuse to watch an accuracy that no evaluation will give; losses are known later."""
    filled = {name: [p for p in evaluated if len(parts[name][p])] for name in parts}
    known = [f"accuracy/{name}/{part}" for name in parts for part in filled[name]]
    known += [f"{p}_accuracy" for p in PARTS if all(p in filled[n] for n in training_domains)]
    if "accuracy" in monitor and monitor not in known:
        raise ConfigError(
            "observer.monitor",
            monitor,
            f"no evaluation gives it; choose from objective, risk, {', '.join(known)}",
            "or keep a part for validation with holdout_fraction=0.2",
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = ranks.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", name, "is not a device of this machine", "choose auto or cpu"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


def _built(make: Callable[[], T], group: str, config: Mapping[str, Any]) -> T:
    """Make a part that knows nothing of our errors: PyTorch refuses a rate below 0, say."""
    try:
        return make()
    except ValueError as error:
        raise ConfigError(group, _given(config[group]), str(error)) from error


def _check_loss(loss: Loss, network: Model, config: Mapping[str, Any]) -> None:
    """Try the loss on a sample, before any training: it may not fit the number of classes."""
    logits = torch.zeros(1, network.classifier.out_features)
    _built(lambda: loss(logits, torch.zeros(1, dtype=torch.long)), "loss", config)


def _check_batch_statistics(network: Model, model: str) -> None:
    """Refuse, for several ranks, statistics that each would take over its own samples."""
    network.train()
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if ranks.count() > 1 and any(norm.training or not norm.track_running_stats for norm in norms):
        raise ConfigError(
            "model", model, "BatchNorm in training mode would see one rank's samples only",
            "pass model.freeze_bn=true, or start one process",
        )  # fmt: skip


def _given(node: Mapping[str, Any]) -> str:
    """What a group of the configuration holds, as the command line would write it."""
    return f"{{{', '.join(f'{k}: {v}' for k, v in node.items() if k != '_target_')}}}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _evaluate(
    right: Callable[[Iterable[Minibatch]], float | None],
    domains: Domains,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: list[str],
    read: Callable[[Domain, Tensor], Iterable[Minibatch]],
    which: tuple[str, ...],
) -> dict[str, Any]:
    """Return accuracies by domain and part, and their means over the training domains."""

    def one(domain: Domain, part: str) -> float | None:
        if part not in which:
            return None
        return right(read(domain, parts[domain.name][part]))

    by_domain = {
        name: {part: one(domain, part) for part in PARTS}
        for name, domain in domains.by_name.items()
    }
    return {
        "accuracy": by_domain,
        **{
            f"{part}_accuracy": _mean([by_domain[name][part] for name in training_domains])
            for part in PARTS
        },
    }


def _look(
    streams: Sequence[Minibatches], model: Model, method: Method, device: torch.device
) -> Callable[[int], dict[str, float | None]]:
    """Return what diagnoses model and method at a step, on the run's first batch."""
    batch = Batch.join([stream[0] for stream in streams])
    batch = Batch(batch.x.to(device), batch.y.to(device), batch.sizes)
    names = [stream.domain.name for stream in streams]
    return lambda step: diagnose(method, model, batch, names, step)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _whole(accuracies: Mapping[str, float | None], counts: Mapping[str, int]) -> float:
    """Accuracy over a whole domain, from its parts."""
    correct = sum((accuracies[part] or 0.0) * counts[part] for part in PARTS)
    return correct / sum(counts.values())


def _line(result: Mapping[str, Any]) -> str:
    """The result as a line for people."""
    shown = [f"test {name} {100 * a:.1f} %" for name, a in result["test_accuracy"].items()]
    for part in reversed(PARTS):
        if result[f"{part}_accuracy"] is not None:
            shown.append(f"{part} {100 * result[f'{part}_accuracy']:.1f} %")
    selected = result["selected"]
    return f"{', '.join(shown)} at step {selected['step']} (chosen by {selected['monitor']})"
