"""The average of the weights of several runs, evaluated and written like a run."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.quiet import without_warnings
from fishr_exp.data.digests import changes
from fishr_exp.runs.environment import environment
from fishr_exp.runs.methods import ERM
from fishr_exp.runs.records import PARTS, Outline, Result, Selected
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.checkpoint import Checkpoints
from fishr_exp.training.members import Mean, Member, config_of, seed_of
from fishr_exp.training.prepare import prepare
from fishr_exp.training.prepared import Prepared
from fishr_exp.training.resuming import device_name
from fishr_exp.training.signals import Signals

log = logging.getLogger(__name__)

BATCH_NORM_STEPS = 100  # minibatches for the statistics of an average


def make_average(members: Sequence[Member], how: str, folder: Path) -> Result:
    """Average runs, evaluate the average, and write it as a run folder.

    Args:
        members: Runs that passed `check_alike`.
        how: `uniform`: of all. `restricted`: in descending order of validation accuracy, a run is
            kept if the accuracy of the mean with it, averaged over the validation parts of the
            training domains, is not lower than before.
        folder: From `folder_of`; where it is done already, it is read.

    Raises:
        ConfigError: If the runs have different splits or starts, or the folder cannot be written.
    """
    run_folder = RunFolder(folder)
    if run_folder.state == "done":
        log.info("done already: %s", folder)
        return Result.from_json(run_folder.result_of_done())
    started = time.perf_counter()
    with run_folder:
        run_folder.acquire()
        prepared, signals = _prepare_all(members), Signals()
        kept, mean = _choose(prepared, members, how, signals)
        _set(prepared, mean, signals)
        result = _result(prepared, members, how, signals)
        config = config_of(members, how, folder.parent)
        run_folder.open(config)
        run_folder.checkpoints.mkdir(exist_ok=True)
        run_folder.write_data(prepared.data)
        prepared.model_facts.write(run_folder.path)
        run_folder.write_environment(
            environment(device_name(prepared.device), torch.get_num_threads())
        )
        Checkpoints(run_folder.checkpoints, {}).save_best(
            {"step": result.selected.step, "model": prepared.training.model.state_dict()}
        )
        result = replace(result, seconds=time.perf_counter() - started)
        listed = [
            {
                "run": str(member.run.path.absolute()),
                "weights": member.digest,
                "step": member.run.step,
                "validation_accuracy": member.run.validation_accuracy,
                "kept": member in kept,
            }
            for member in members
        ]
        run_folder.finish({**result.to_json(), "averaged": listed})
    return result


def _prepare_all(members: Sequence[Member]) -> Prepared:
    """Prepare the runs again, to compare their splits and initial weights; return the first.

    Raises:
        ConfigError: If they differ, or the data are not those of the runs.
    """
    first = members[0]
    domains = first.arguments.dataset()
    prepared = _prepared(first, domains)[0]
    for member in members:
        if changed := changes(member.run.data or prepared.data, prepared.data):
            reason = f"the data have changed since this run ({changed})"
            raise ConfigError("RUN", member.run.path, reason, "restore them")
    starts: dict[str, Member] = {}  # digest of initial weights -> the first run with them
    unknown = ""
    for member in members:
        other, problem = _prepared(member, domains)
        _check_splits(first, prepared, member, other)
        unknown = unknown or problem
        if not problem:
            starts.setdefault(_digest(other), member)
        if len(starts) > 1:
            one = next(iter(starts.values()))
            raise ConfigError(
                "RUN", member.run.path, f"started from other weights than {one.run.path}",
                "give all runs one start: model.weights_file=FOLDER/checkpoints/best.pt of a run of"
                " experiment=linear_probe, or the same seed",
            )  # fmt: skip
    if unknown:
        log.warning("it is not known whether all runs have the same start: %s", unknown)
    return prepared


def _prepared(member: Member, domains: Domains) -> tuple[Prepared, str]:
    """Return a run before its first step, and why it does not have its initial weights, if so."""
    arguments = replace(member.arguments, dataset=lambda: domains)
    with without_warnings():  # the runs have given theirs
        try:
            return prepare(arguments), ""
        except ConfigError as error:
            build = arguments.model
            of_the_start = error.key in ("model.weights_file", "model.pretrained")
            if not of_the_start or not isinstance(build, functools.partial):
                raise
            known = inspect.signature(build.func).parameters
            own = {"weights_file": str(member.weights), "pretrained": False}
            own = {key: value for key, value in own.items() if key in known}
            model = functools.partial(build.func, **{**build.keywords, **own})
            return prepare(replace(arguments, model=model)), f"{member.run.path}: {error}"


def _check_splits(first: Member, prepared: Prepared, member: Member, other: Prepared) -> None:
    for name, parts in prepared.parts.items():
        if any(not torch.equal(parts[part], other.parts[name][part]) for part in parts):
            raise ConfigError(
                "RUN", member.run.path,
                f"splits {name} differently from {first.run.path}: what validates one may have"
                " trained the other",
                "pass runs of one seed, or of one protocol.trial_seed",
            )  # fmt: skip


def _digest(prepared: Prepared) -> str:
    """Return what stands for the initial weights."""
    sums = hashlib.sha256()
    for name, value in prepared.training.model.state_dict().items():
        sums.update(name.encode() + value.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def _choose(
    prepared: Prepared, members: Sequence[Member], how: str, signals: Signals
) -> tuple[list[Member], Mean]:
    """Return the runs that are averaged, and their mean."""
    kept: list[Member] = []
    mean, best = Mean(), float("-inf")
    for member in members if how == "uniform" else _by_validation(members):
        candidate = mean.with_another(member.read(prepared.training.model.state_dict()))
        if how == "restricted":
            _set(prepared, candidate, signals)
            counted = prepared.count(prepared.training.model, PARTS[1:], signals)
            accuracy = prepared.scores(counted).mean("accuracy", "validation")
            assert accuracy is not None  # of data on which all runs have one
            verdict = "kept" if accuracy >= best else "left out"
            log.info(
                "%s: %s; the mean with it has validation %.2f %%",
                member.run.path,
                verdict,
                100 * accuracy,
            )
            if accuracy < best:
                continue
            best = accuracy
        kept.append(member)
        mean = candidate
    return kept, mean


def _by_validation(members: Sequence[Member]) -> list[Member]:
    for member in members:
        if member.run.validation_accuracy is None:
            reason = "has no validation accuracy on its training domains"
            raise ConfigError("RUN", member.run.path, reason, "pass --how uniform")
    return sorted(members, key=lambda member: -(member.run.validation_accuracy or 0.0))


def _set(prepared: Prepared, mean: Mean, signals: Signals) -> None:
    """Set the model to a mean; the mean of BatchNorm statistics is not that of the mean's."""
    prepared.training.model.load_state_dict(mean.state_dict())
    prepared.recompute_statistics(prepared.training.model, BATCH_NORM_STEPS, signals)


def _result(prepared: Prepared, members: Sequence[Member], how: str, signals: Signals) -> Result:
    """Evaluate the model, and put together what it came to."""
    runs = [member.run for member in members]
    counted = prepared.count(prepared.training.model, PARTS, signals)
    selected = [RunFolder(run.path).result_of_done()["selected"] for run in runs]
    methods = sorted({ERM if run.gamma == 0 else run.method for run in runs})
    gammas = {run.gamma for run in runs}
    options = sorted({run.option for run in runs})
    return Result(
        outline=Outline(
            labels={
                "dataset": runs[0].dataset,
                "model": runs[0].model,
                "trainer": " + ".join(options),
            },
            method=f"{' + '.join(methods)} ({how} average of {len(members)})",
            gamma=(gammas.pop() or None) if len(gammas) == 1 else None,
            seed=seed_of(members),
            training_domains=prepared.training_domains,
            test_domains=list(runs[0].test_domains),
        ),
        selected=Selected(
            step=max(run.step for run in runs),
            epoch=max(of["epoch"] for of in selected),
            monitor=f"{how} average",
            uses_test_domain=any(run.selected_by_test_domain for run in runs),
            penalty_had_acted=all(of.get("penalty_had_acted", False) for of in selected),
            only_choice=True,
        ),
        scores=prepared.scores(counted),
        test=prepared.test_scores(counted),
        counts={n: {p: len(parts[p]) for p in PARTS} for n, parts in prepared.parts.items()},
        skipped=prepared.domains.skipped,
        data=prepared.data,
        last={},
        seconds=0.0,
    )
