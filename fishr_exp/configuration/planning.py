"""The runs of a sweep, composed, checked and prepared, and none of them started."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from fishr_exp.configuration import outcomes
from fishr_exp.configuration.baseline import AddBaseline
from fishr_exp.configuration.composing import composing_once
from fishr_exp.configuration.messages import one_line
from fishr_exp.configuration.mistakes import MistakesError
from fishr_exp.configuration.options import conf_dir, search_path
from fishr_exp.configuration.protocol import check_ranges
from fishr_exp.configuration.sweeping.grids import split
from fishr_exp.configuration.sweeping.runs import SweptRun, bound, candidates, leaders, share
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.quiet import without_warnings
from fishr_exp.runs.identity import settings
from fishr_exp.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from fishr_exp.core.contracts import Domains, Model
    from fishr_exp.training.arguments import Arguments
    from fishr_exp.training.trunk import Trunk

SWEEPERS = (
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.fishr_exp_sweeper.SharingSweeper",
)


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    overrides: str  # that the sweep varies
    folder: Path
    arguments: Arguments
    state: str  # of `STATES`
    step: int  # that its records reach
    steps: int  # in all
    steps_per_epoch: int
    gamma: float | None
    anneal_steps: int
    candidates: Sequence[Trunk] = ()  # the steps that it could share with others
    shared: int = 0  # the first steps that it takes over from another run

    @property
    def labels(self) -> Mapping[str, str]:
        """What its parts are called."""
        return self.arguments.labels

    @property
    def settings(self) -> dict[str, Any]:
        """The flat settings."""
        return settings(self.arguments.config)

    @property
    def evaluations(self) -> int:
        """How many there will be."""
        return self.evaluations_from(0)

    def evaluations_from(self, first: int) -> int:
        """How many there will be after step `first`."""
        return -(-(self.steps - first) // self.steps_per_epoch)

    @property
    def cost_key(self) -> tuple[object, ...]:
        """What runs of equal cost share: all parts, and what the method computes."""
        own = {k: v for k, v in self.settings.items() if k.startswith("trainer.")}
        kinds = [f"{k}={v}" for k, v in sorted(own.items()) if not _is_number(v)]
        return (*self.labels.values(), *kinds)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> list[Job]:
    """Return all runs of the sweep, each once, in their order.

    Raises:
        MistakesError: If runs are not as they must be.
    """
    jobs: dict[Path, Job] = {}
    parts = _Parts()
    mistakes: dict[str, list[str]] = {}
    with composing_once(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        inner = GlobalHydra.instance().hydra
        assert inner is not None
        config = inner.compose_config(
            "config", [*overrides, *search_path(config_dir)], RunMode.MULTIRUN
        )
        AddBaseline().on_multirun_start(config)
        runs = _split(config, inner.config_loader)
        for override_list in tqdm(runs, desc="composing", unit="run", disable=None, leave=False):
            varied = " ".join(w for w in override_list if w not in overrides) or " ".join(
                override_list
            )
            try:
                job = _job(
                    inner.config_loader.load_sweep_config(config, override_list), varied, parts
                )
            except Exception as error:
                if (message := one_line(error)) is None:
                    raise
                mistakes.setdefault(message, []).append(varied)
            else:
                jobs.setdefault(job.folder, job)
    for folder in {folder.parent for folder in jobs}:
        if message := _cannot_be_written(folder):
            mistakes.setdefault(message, []).append("")
    if mistakes:
        raise MistakesError(mistakes)
    outcomes.tell_notes()
    return _sharing(list(jobs.values()))


def _sharing(jobs: Sequence[Job]) -> list[Job]:
    """Note which steps the runs take over from others."""
    runs = {
        job.folder: SweptRun(
            (), job.folder, position, is_baseline=job.gamma == 0, candidates=job.candidates
        )
        for position, job in enumerate(jobs)
        if job.state != "done"
    }
    share(runs.values())
    first = {run.folder for run in leaders([*runs.values()])}
    trunks = {folder: run.trunk for folder, run in runs.items() if folder not in first}
    return [
        replace(job, shared=trunk.step) if (trunk := trunks.get(job.folder)) else job
        for job in jobs
    ]


def _cannot_be_written(folder: Path) -> str:
    """Say why a folder of runs cannot be written; empty if it can, or can be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    why = "Permission denied" if there.is_dir() else f"{there} is not a folder"
    reason = f"this folder cannot be written ({why})"
    return str(ConfigError("output_dir", folder, reason, "choose another output_dir"))


def _split(config: DictConfig, loader: Any) -> list[list[str]]:
    """Return the overrides of every run, as Hydra's own sweeper makes them."""
    sweeper = config.hydra.sweeper
    if sweeper.get("_target_") not in SWEEPERS:
        reason = "this sweeper selects its runs as it goes, so they cannot be planned"
        raise ConfigError("hydra/sweeper", sweeper.get("_target_"), reason, "leave it out")
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return split(sweeper.params, typed, loader)


class _Parts:
    """Datasets and networks of the plan, each built once for all runs that have the same."""

    def __init__(self) -> None:
        self._datasets: dict[str, Domains] = {}
        self._networks: dict[str, Model] = {}

    def shared(self, checked: Arguments) -> Arguments:
        """Return arguments that build the same run, from parts that are there already."""
        from fishr_exp.core.contracts import Trainer

        values = settings(checked.config)
        # Another seed draws another dataset of the same sizes.
        data = [(k, v) for k, v in values.items() if k.startswith("dataset.") and "seed" not in k]
        network = [(k, v) for k, v in values.items() if k.startswith("model.")]
        changes = getattr(checked.trainer.func, "prepare", None) is not Trainer.prepare  # type: ignore[attr-defined]

        def dataset() -> Domains:
            return _once(self._datasets, str(sorted(data, key=str)), checked.dataset)

        def model(**given: Any) -> Model:
            build = functools.partial(checked.model, **given)
            found = _once(self._networks, str([sorted(network, key=str), given]), build)
            return copy.deepcopy(found) if changes else found

        return replace(checked, dataset=dataset, model=model)


def _once(made: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    if name not in made:
        made[name] = make()
    return made[name]


def _job(config: DictConfig, varied: str, parts: _Parts) -> Job:
    from fishr_exp.training.prepare import prepare

    folder, checked, own = bound(config)
    check_ranges(own, config.hydra.runtime.choices)
    with without_warnings():
        prepared = prepare(parts.shared(checked))
    there = RunFolder(folder)
    records = there.records()
    trainer = prepared.training.trainer
    return Job(
        overrides=varied,
        folder=folder,
        arguments=checked,
        state=there.state if checked.resume else "planned",
        step=records[-1]["step"] if records and checked.resume else 0,
        steps=prepared.total_steps,
        steps_per_epoch=prepared.steps_per_epoch,
        gamma=trainer.gamma,
        anneal_steps=trainer.anneal_steps,
        candidates=candidates(checked, trainer, folder),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
