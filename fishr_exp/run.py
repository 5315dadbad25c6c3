"""One run, read top to bottom: check, build, fit, evaluate, record."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fishr_exp import seeding
from fishr_exp.contracts import Domain, Domains, Minibatch, Model
from fishr_exp.data.minibatches import Minibatches, chunks, loader
from fishr_exp.data.splits import split
from fishr_exp.errors import ConfigError, TrainingError
from fishr_exp.results.environment import environment
from fishr_exp.results.run_folder import RunFolder
from fishr_exp.training import checkpoint
from fishr_exp.training.evaluation import accuracy
from fishr_exp.training.loop import Training, fit
from fishr_exp.training.observer import Observer, Verdict
from fishr_exp.training.step import Method

log = logging.getLogger(__name__)

PARTS = ("train", "validation")


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
    trainer: Callable[[], Method],
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    observer: Callable[[], Observer],
    tracker: Callable[[RunFolder], Mirror] | None,
    seed: int,
    test_domains: list[str],
    holdout_fraction: float,
    batch_size: int | None,
    epochs: int,
    steps_per_epoch: int | None,
    evaluate_train: bool,
    evaluation_batch_size: int,
    num_workers: int,
    device: str,
    resume: bool,
    folder: Path,
    labels: Mapping[str, str],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Train one method on the training domains and evaluate it on all; return the result.

    The first six arguments make the parts when called. The keys of `conf/config.yaml` are the
    arguments up to `resume`, and are described there.

    Args:
        folder: The run folder. A done run found there is returned as it is, and a stopped one is
            continued, unless `resume` is false.
        labels: What the parts are called: `dataset`, `model`, `trainer`.
        config: The resolved configuration, to be recorded.

    Raises:
        ConfigError: If what was asked for cannot be; nothing was trained.
        TrainingError: If the run could not go on; its records and checkpoints stay.
    """
    # --- check and build -------------------------------------------------------------------
    _check_counts(epochs, steps_per_epoch, evaluation_batch_size, num_workers)
    where = _device(device)
    record_folder = RunFolder(folder)
    if resume and record_folder.state == "done":
        result = _done(record_folder, tracker, config, labels)
        if result is not None:
            return result
    method = trainer()
    watcher = observer()
    domains = dataset()
    training_domains = _training_domains(domains, test_domains, method, labels["trainer"])
    if watcher.watches(test_domains):
        log.warning("observer.monitor=%s chooses by a test domain", watcher.monitor)
    parts = {
        name: dict(zip(PARTS, split(domain, holdout_fraction, seed), strict=True))
        for name, domain in domains.by_name.items()
    }
    evaluated = PARTS if evaluate_train else PARTS[1:]
    _check_monitor(watcher.monitor, parts, training_domains, evaluated)
    streams = [
        Minibatches(domains.by_name[name], parts[name]["train"], batch_size, seed)
        for name in training_domains
    ]
    steps = steps_per_epoch or min(stream.per_pass for stream in streams)
    watcher.not_before = anneal_steps = getattr(method, "anneal_steps", 0)
    if anneal_steps >= epochs * steps:
        log.warning(
            "trainer.anneal_steps=%d: the penalty never acts in %d epochs of %d steps",
            anneal_steps,
            epochs,
            steps,
        )
    seeding.seed_global_streams(seed, "model")
    network = model(input_shape=domains.input_shape, num_classes=domains.num_classes).to(where)
    seeding.seed_global_streams(seed, "training")
    try:
        training = Training(network, method, optimizer, watcher)
    except ValueError as error:  # from PyTorch: a rate below 0, say
        raise ConfigError("optimizer", _given(config["optimizer"]), str(error)) from error

    read = functools.partial(
        chunks,
        size=evaluation_batch_size,
        num_workers=num_workers,
        pin_memory=where.type == "cuda",
    )
    evaluate = functools.partial(_evaluate, network, domains, parts, training_domains, read, where)

    # --- fit ---------------------------------------------------------------------------------
    with record_folder:
        if not resume:
            record_folder.clear()
        record_folder.open(config)
        record_folder.checkpoints.mkdir(exist_ok=True)
        record_folder.write_environment(environment(_device_name(where), torch.get_num_threads()))
        best, last = (record_folder.checkpoints / name for name in ("best.pt", "last.pt"))
        if last.exists():
            training.load_state_dict(checkpoint.load(last))
            log.info("continuing %s after step %d", folder, training.step)
        record_folder.keep_until(training.step)
        mirror = tracker(record_folder) if tracker else None
        if mirror:
            mirror.start(config, labels)

        started = time.perf_counter()
        earlier = record_folder.records()
        seconds_before = earlier[-1]["seconds"] if earlier else 0.0

        def on_evaluation(record: dict[str, Any], verdict: Verdict) -> None:
            record["seconds"] = seconds_before + time.perf_counter() - started
            record_folder.append(record)
            if verdict.improved:
                checkpoint.save(best, {"step": training.step, "model": network.state_dict()})
            checkpoint.save(last, training.state_dict())
            if mirror:
                mirror.sync()

        outline = {
            "labels": dict(labels),
            "gamma": getattr(method, "gamma", None),
            "seed": seed,
            "training_domains": training_domains,
            "test_domains": test_domains,
        }
        with _failure_recorded(record_folder, mirror, outline):
            fit(
                training,
                [
                    loader(
                        stream,
                        training.step,
                        epochs * steps,
                        num_workers=num_workers,
                        pin_memory=where.type == "cuda",
                    )
                    for stream in streams
                ],
                functools.partial(evaluate, evaluated),
                on_evaluation,
                epochs=epochs,
                steps_per_epoch=steps,
                title=folder.name,
            )
            chosen_step = training.step
            if watcher.keep == "best":
                kept = checkpoint.load(best)
                network.load_state_dict(kept["model"])
                chosen_step = kept["step"]
            log.info("evaluating all domains at step %d", chosen_step)
            chosen = evaluate(PARTS)

            # --- record ------------------------------------------------------------------------
            counts = {name: {p: len(parts[name][p]) for p in PARTS} for name in parts}
            result = {
                "status": "done",
                **outline,
                "selected": {
                    "step": chosen_step,
                    "epoch": chosen_step // steps,
                    "monitor": watcher.monitor if watcher.keep == "best" else "last step",
                    "uses_test_domain": watcher.keep == "best" and watcher.watches(test_domains),
                    "penalty_had_acted": bool(outline["gamma"]) and chosen_step > anneal_steps,
                },
                **chosen,
                "counts": counts,
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
        if mirror:
            mirror.finish("FINISHED")
    if chosen_step <= anneal_steps < training.step:
        log.warning("the chosen step lies before trainer.anneal_steps=%d, as ERM's", anneal_steps)
    log.info("%s", _line(result))
    log.info("%s", folder)
    return result


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


@contextlib.contextmanager
def _failure_recorded(
    folder: RunFolder, mirror: Mirror | None, outline: Mapping[str, Any]
) -> Iterator[None]:
    """Mark a run that fails as failed, in its folder and in the mirror; its records stay."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped:
            with contextlib.suppress(OSError):  # a full disk may be why the run failed
                folder.fail(f"{type(error).__name__}: {error}", outline)
        if mirror:
            mirror.finish("KILLED" if stopped else "FAILED")
        if isinstance(error, TrainingError | OSError):
            raise TrainingError(f"{error}; records and checkpoints are in {folder.path}") from error
        raise


def _check_counts(
    epochs: int, steps_per_epoch: int | None, evaluation_batch_size: int, num_workers: int
) -> None:
    for key, value, least in (
        ("epochs", epochs, 1),
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
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", name, "is not a device of this machine", "choose auto or cpu"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


def _given(node: Mapping[str, Any]) -> str:
    """What a group of the configuration holds, as the command line would write it."""
    return f"{{{', '.join(f'{k}: {v}' for k, v in node.items() if k != '_target_')}}}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _evaluate(
    model: Model,
    domains: Domains,
    parts: Mapping[str, Mapping[str, Tensor]],
    training_domains: list[str],
    read: Callable[[Domain, Tensor], Iterable[Minibatch]],
    device: torch.device,
    which: tuple[str, ...],
) -> dict[str, Any]:
    """Return accuracies by domain and part, and their means over the training domains."""

    def one(domain: Domain, part: str) -> float | None:
        if part not in which:
            return None
        return accuracy(model, read(domain, parts[domain.name][part]), device)

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
