"""A whole sweep, read top to bottom: find its runs, check them, share steps, launch, report."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from fishr_exp.configuration import outcomes
from fishr_exp.configuration.binding import part
from fishr_exp.configuration.composing import composing_once
from fishr_exp.configuration.permissions import allowed_targets
from fishr_exp.configuration.planning import without_warnings
from fishr_exp.configuration.sweeping.launching import forget_trunks, in_waves, one_by_one
from fishr_exp.configuration.sweeping.progress import Progress
from fishr_exp.configuration.sweeping.runs import (
    SweptRun,
    described,
    folder_of,
    in_order,
    raise_mistakes,
    share,
)
from fishr_exp.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

# Which say for each job that they launch it.
_LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher",)


class Sweep:
    """The runs of one command.

    Args:
        config: The configuration that they have in common.
        loader: Composes that of a run.
        launcher: Launches them.
        words: The overrides of each run.
        most: Runs to launch at a time, for a launcher that makes several; None: all.
    """

    def __init__(
        self,
        config: DictConfig,
        loader: ConfigLoader,
        launcher: Launcher | None,
        words: Sequence[Sequence[str]],
        most: int | None,
    ) -> None:
        assert launcher is not None
        self.config, self.loader, self.launcher = config, loader, launcher
        self.words, self.most = words, most
        self.folder = Path(str(config.hydra.sweep.dir))
        self.kind = str(config.hydra.launcher.get("_target_"))
        # Where a job's number is part of its folder's name, it stays as Hydra counts.
        raw = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        self.by_number = "hydra.job." in str(raw)
        self.done: list[Path] = []
        self.failed: list[Path] = []
        for name in _LAUNCHERS:
            logging.getLogger(name).setLevel(logging.WARNING)

    def make(self) -> None:
        """Make all runs that are not done.

        Raises:
            MistakesError: If runs are not as they must be; none was started.
            Exception: What ends the sweep, such as a stop.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        todo = self._find()
        share(todo)
        todo = todo if self.by_number else in_order(todo)
        self._note_trunks(todo)
        progress = Progress(len(self.done), len(self.failed), todo, self._at_a_time())
        if self.failed:
            outcomes.sweep.status = outcomes.sweep.status or 1
        try:
            with progress.shown(watching="Basic" not in self.kind):
                self._launch(todo, progress)
        finally:
            forget_trunks(todo)
            for line in progress.summary(self.folder):
                log.info("%s", line)

    def _find(self) -> list[SweptRun]:
        """Return the runs that are to be made; check all of them first."""
        todo: dict[Path, SweptRun] = {}
        mistakes: list[tuple[Exception, Sequence[str]]] = []
        seen: set[Path] = set()
        with composing_once():
            bar = tqdm(self.words, desc="composing", unit="run", disable=None, leave=False, delay=2)
            for position, words in enumerate(bar, start=1):
                try:
                    config = self._composed(words, position)
                    folder = folder_of(config)
                    if folder in seen:
                        continue
                    seen.add(folder)
                    if state := self._state(folder, config):
                        {"done": self.done, "failed": self.failed}[state].append(folder)
                        continue
                    with without_warnings():
                        todo[folder] = described(config, words, position, shares=not self.by_number)
                except Exception as error:  # noqa: BLE001 - whatever a part of a user's does
                    if self.config.check_first:
                        mistakes.append((error, self._varied(words)))
                    else:
                        todo[folder] = SweptRun(tuple(words), folder, position)
        raise_mistakes(mistakes)
        return list(todo.values())

    def _composed(self, words: Sequence[str], position: int) -> DictConfig:
        config = self.loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = position - 1
        return config

    def _varied(self, words: Sequence[str]) -> list[str]:
        """Return the words that not all runs have."""
        common = set(self.words[0]).intersection(*self.words)
        return [word for word in words if word not in common] or list(words)

    def _state(self, folder: Path, config: DictConfig) -> str:
        """Say whether a run is done, or has failed and is not tried again; empty if neither."""
        if not config.resume:
            return ""
        state = RunFolder(folder).state
        if state == "done" and self._is_tracked(folder, config):
            return "done"
        return "failed" if state == "failed" and not config.retry_failed else ""

    def _is_tracked(self, folder: Path, config: DictConfig) -> bool:
        """Whether the tracker has all of a run that is done."""
        if config.tracker is None:
            return True
        node = OmegaConf.to_container(config.tracker, resolve=True)
        tracker = part(node, "tracker", allowed_targets(config.get("allow_targets")))
        assert tracker is not None
        return not tracker(RunFolder(folder)).lacks("FINISHED")

    def _note_trunks(self, todo: Sequence[SweptRun]) -> None:
        members: dict[Path, list[SweptRun]] = {}
        for run in todo:
            if run.trunk:
                members.setdefault(run.trunk.folder, []).append(run)
        for runs in members.values():
            trunk = runs[0].trunk
            assert trunk is not None
            try:
                trunk.want(run.folder.name for run in runs)
            except OSError as error:
                log.warning("steps are not shared: %s", error)
                return

    def _at_a_time(self) -> int:
        given: dict[str, Any] = dict(self.config.hydra.launcher)
        count = int(given.get("n_jobs") or given.get("array_parallelism") or 1)
        return count if count > 0 else os.cpu_count() or 1

    def _launch(self, todo: Sequence[SweptRun], progress: Progress) -> None:
        def launch(runs: Sequence[SweptRun], words: Sequence[str]) -> Sequence[JobReturn]:
            place = f"{{}}/{progress.total}"
            jobs = [
                [*run.words, *words, f"sweep_position={place.format(run.position)}"] for run in runs
            ]
            return self.launcher.launch(jobs, initial_job_idx=runs[0].position - 1)

        if "Basic" in self.kind:
            one_by_one(todo, launch, progress)
        elif "SlurmLauncher" in self.kind and self.most is None and not self.by_number:
            from fishr_exp.configuration.sweeping.cluster import through_slurm

            through_slurm(todo, launch, progress, self.launcher)
        else:
            in_waves(todo, launch, progress, self.most)
