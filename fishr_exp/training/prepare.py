"""All that can be checked and built before the first step of a run.

The run, the plan of a sweep, its estimate of time and the evaluation of a checkpoint all start
here, so they agree on what a run is, and on what is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fishr_exp.core import distributed, seeding
from fishr_exp.core.compiler import compiler_not_imported
from fishr_exp.core.contracts import Averaging, Domains, Facts, Loss, Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.batch_sizes import batch_size_of, check_batch_size, check_named
from fishr_exp.data.minibatches import Minibatches
from fishr_exp.data.splits import check_fraction, limited, split
from fishr_exp.gradient_variance import UnsupportedError
from fishr_exp.runs.identity import TARGET
from fishr_exp.runs.records import PARTS
from fishr_exp.training.arguments import Arguments
from fishr_exp.training.built import (
    as_domains,
    as_kind,
    as_model,
    as_trainer,
    build_part,
    check_fit,
    two_samples,
)
from fishr_exp.training.choice import leave_the_choice, prepare_observer
from fishr_exp.training.counts import check_counts
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.evaluation import check_metrics
from fishr_exp.training.loop import Training
from fishr_exp.training.precision import autocast, check_precision, compile_featurizer
from fishr_exp.training.prepared import Prepared
from fishr_exp.training.schedules import (
    MakeSchedule,
    check_monitored,
    check_schedule,
    schedule_of,
)
from fishr_exp.training.step import Autocast

log = logging.getLogger(__name__)
T = TypeVar("T")


class Checked(NamedTuple):
    """The parts of a run that need neither data nor device nor network."""

    loss: Loss
    trainer: Trainer
    observer: EarlyStopping


def check(arguments: Arguments) -> Checked:
    """Check what can be checked without data, device and network; return what was built.

    Raises:
        ConfigError: If what was asked for cannot be.
    """
    check_counts(arguments)
    check_batch_size(arguments.batch_size)
    check_fraction(arguments.holdout_fraction)
    check_metrics(arguments.metrics)
    check_schedule(arguments, _optimizer(arguments, [torch.nn.Parameter(torch.zeros(1))]))
    loss = build_part(arguments.loss, "loss", arguments.config, UnsupportedError)
    seeding.seed_global_streams(arguments.seed, "trainer")  # it may make networks
    trainer = as_trainer(arguments.trainer(loss=loss))
    if distributed.is_active() and trainer.refuses_processes:
        label, why = arguments.labels["trainer"], trainer.refuses_processes
        raise ConfigError("trainer", label, why, "start one process")
    check_precision(arguments.precision, trainer)
    observer = as_kind(arguments.observer(), EarlyStopping, "observer")
    if arguments.averaging:
        as_kind(arguments.averaging(), Averaging, "averaging")
    _check_named_domains(arguments)
    return Checked(loss, trainer, observer)


def prepare(arguments: Arguments) -> Prepared:
    """Check what was asked for, and build all parts of a run, up to its first step.

    Raises:
        ConfigError: If what was asked for cannot be; nothing was written.
    """
    loss, trainer, observer = check(arguments)
    device = find_device(arguments.device)
    context = autocast(arguments.precision, device)
    domains = as_domains(arguments.dataset())
    training_domains = _training_domains(arguments, domains, trainer)
    parts = split_domains(arguments, domains)
    check_named(arguments.batch_size, domains.by_name, training_domains)
    streams = [
        Minibatches(
            domains.by_name[name],
            parts[name]["train"],
            batch_size_of(arguments.batch_size, name),
            arguments.seed,
            (distributed.rank(), distributed.world_size()),
            arguments.sampling,
        )
        for name in training_domains
    ]
    # A domain smaller than its minibatch, which repeats its samples, does not shorten the epochs.
    passes = [stream.per_pass for stream in streams if stream.per_pass]
    steps_per_epoch = arguments.steps_per_epoch or min(passes, default=1)
    total_steps = arguments.total_steps or (arguments.epochs or 0) * steps_per_epoch
    prepare_observer(observer, arguments, trainer, parts, training_domains)
    check_monitored(arguments, observer.measured, training_domains)
    late = _too_late("trainer", arguments.config["trainer"], total_steps)
    if late or trainer.anneal_steps >= total_steps:  # where it is a default, it is not there
        log.warning(
            "%s: what begins there never acts in the %d steps of this run; lower it, or raise "
            "epochs or total_steps",
            ", ".join(late) or f"trainer.anneal_steps={trainer.anneal_steps}",
            total_steps,
        )
    training = _training(
        arguments, domains, trainer, observer, context, device,
        training_domains, total_steps,
        schedule_of(arguments, total_steps, steps_per_epoch),
    )  # fmt: skip
    if training.averaging.first_step > total_steps:
        log.warning(
            "averaging.start=%d: no weights are averaged in the %d steps of this run; lower it",
            training.averaging.first_step,
            total_steps,
        )
    leave_the_choice(training.averaging, observer, arguments, parts, training_domains)
    _check_loss(loss, training.model, arguments.config)
    return Prepared(
        arguments=arguments,
        device=device,
        domains=domains,
        training_domains=training_domains,
        parts=parts,
        streams=streams,
        loss=loss,
        training=training,
        autocast=context,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )


def split_domains(arguments: Arguments, domains: Domains) -> dict[str, dict[str, Tensor]]:
    """Split each domain: name -> part -> indices, int64."""
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    parts = {}
    for name, domain in domains.by_name.items():
        whole = split(domain, arguments.holdout_fraction, seed)
        few = limited(whole, arguments.limit_samples, seed, name)
        parts[name] = dict(zip(PARTS, few, strict=True))
    return parts


def _too_late(key: str, value: Any, total_steps: int) -> list[str]:
    """Return the keys of a trainer, also within others, at whose step the run has ended."""
    if isinstance(value, Mapping):
        return [w for k, v in value.items() for w in _too_late(f"{key}.{k}", v, total_steps)]
    late = (
        key.endswith(("anneal_steps", "classifier_steps"))
        and isinstance(value, int)
        and value >= total_steps
    )
    return [f"{key}={value}"] if late else []


def _training(
    arguments: Arguments,
    domains: Domains,
    trainer: Trainer,
    observer: EarlyStopping,
    context: Autocast,
    device: torch.device,
    training_domains: Sequence[str],
    total_steps: int,
    make_schedule: MakeSchedule | None,
) -> Training:
    """Build the networks and their optimizers."""
    seeding.seed_global_streams(arguments.seed, "model")
    built = arguments.model(input_shape=domains.input_shape, num_classes=domains.num_classes)
    samples = two_samples(domains)
    model = as_model(built, samples)
    seeding.seed_global_streams(arguments.seed, "trainer", "prepare")
    facts = Facts(
        tuple(training_domains), domains.num_classes, model.classifier.in_features, total_steps,
        tuple(domains.input_shape),
    )  # fmt: skip
    model = trainer.prepare(model, facts).to(device)
    trainer.to(device)
    named = arguments.config["model"].get("name")
    of = (str(named), "model.name") if named else (arguments.labels["model"], "model")
    check_fit(model, samples, domains.num_classes, *of)
    seeding.seed_global_streams(arguments.seed, "training")
    _check_batch_statistics([model, trainer], arguments.labels["model"])
    if arguments.channels_last:  # of the weights; images follow at the first convolution
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arguments.compile:
        compile_featurizer(model, trainer)
    averaging = Averaging()
    if arguments.averaging:
        averaging = as_kind(arguments.averaging(), Averaging, "averaging")
    averaging.prepare(model)
    averaging.to(device)

    def optimizer(*given: Any, **overrides: Any) -> torch.optim.Optimizer:
        return _optimizer(arguments, *given, **overrides)

    return Training(
        model, trainer, optimizer, observer, averaging,
        autocast=context, make_schedule=make_schedule, clip_norm=arguments.clip_norm,
        grouping=arguments.grouping,
    )  # fmt: skip


def _optimizer(arguments: Arguments, *given: Any, **overrides: Any) -> torch.optim.Optimizer:
    """Build an optimizer of parameters; refuse what is none, or cannot be used."""

    def make() -> torch.optim.Optimizer:
        return arguments.optimizer(*given, **overrides)

    with compiler_not_imported():
        built = build_part(make, "optimizer", arguments.config, ValueError)
    as_kind(built, torch.optim.Optimizer, "optimizer")
    closure = inspect.signature(built.step).parameters.get("closure")
    if closure and closure.default is closure.empty:  # L-BFGS
        reason = "needs a closure, which evaluates the objective several times a step"
        raise ConfigError("optimizer", type(built).__name__, reason, "choose another optimizer")
    return built


def _check_named_domains(arguments: Arguments) -> None:
    """Refuse an unknown test domain before the data are read, where the configuration names all."""
    dataset = arguments.config["dataset"]
    named = dataset.get("domains") or dataset.get("lists")
    if isinstance(named, list | dict) and dataset[TARGET].startswith("fishr_exp."):
        known = [str(name) for name in named]
        _check_known(arguments.test_domains, known, arguments.labels["dataset"])


def _check_known(test_domains: Sequence[str], known: Sequence[str], dataset: str) -> None:
    if unknown := [name for name in test_domains if name not in known]:
        raise ConfigError(
            "test_domains", f"[{', '.join(test_domains)}]", f"{dataset} has no domain {unknown[0]}",
            f"choose from {', '.join(known)}",
        )  # fmt: skip


def _training_domains(arguments: Arguments, domains: Domains, trainer: Trainer) -> list[str]:
    """Return the domains to train on, in the dataset's order."""
    test_domains = arguments.test_domains
    given = f"[{', '.join(test_domains)}]"
    known = list(domains.by_name)
    _check_known(test_domains, known, domains.name)
    if not test_domains or len(set(test_domains)) < len(test_domains):
        reason = "names a domain twice" if test_domains else "leaves no domain to test on"
        raise ConfigError("test_domains", given, reason, f"choose from {', '.join(known)}")
    training = [name for name in known if name not in test_domains]
    if len(training) < trainer.min_domains:
        most = len(known) - trainer.min_domains
        raise ConfigError(
            "test_domains", given,
            f"leaves {len(training)} of {len(known)} domains of {domains.name} to train on, "
            f"and trainer={arguments.labels['trainer']} needs {trainer.min_domains}",
            f"choose at most {most}" if most > 0 else "choose another dataset or trainer",
        )  # fmt: skip
    return training


def find_device(name: str) -> torch.device:
    """Return the device that `device=name` stands for.

    Raises:
        ConfigError: If this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = distributed.device(name)
        torch.ones(1, device=device).item()  # no number comes from meta, say
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", name, "is not a device of this machine", "choose auto or cpu"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


def _check_loss(loss: Loss, model: Model, config: Mapping[str, Any]) -> None:
    """Try the loss on a sample, before any training: it may not fit the number of classes."""
    weight = model.classifier.weight
    logits = torch.zeros(1, len(weight), device=weight.device)
    target = torch.zeros(1, dtype=torch.long, device=weight.device)
    build_part(lambda: loss(logits, target), "loss", config, UnsupportedError)


def _check_batch_statistics(modules: Sequence[nn.Module], model: str) -> None:
    """Refuse, for several processes, statistics that each would take over its own samples."""
    for module in modules:
        module.train()
    every = [m for module in modules for m in module.modules()]
    norms = (m for m in every if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if distributed.world_size() > 1 and any(
        norm.training or not norm.track_running_stats for norm in norms
    ):
        raise ConfigError(
            "model", model, "BatchNorm in training mode would see one rank's samples only",
            "pass model.freeze_bn=true, or start one process",
        )  # fmt: skip
