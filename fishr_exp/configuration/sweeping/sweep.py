"""A whole sweep, read top to bottom: find its runs, check them, share steps, launch, report."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from fishr_exp.configuration import outcomes
from fishr_exp.configuration.binding import part, typed_words
from fishr_exp.configuration.composing import composing_once
from fishr_exp.configuration.index import Index, digest_of_inputs
from fishr_exp.configuration.permissions import allowed_targets
from fishr_exp.configuration.sweeping.launching import forget_trunks, in_waves, one_by_one
from fishr_exp.configuration.sweeping.progress import Progress
from fishr_exp.configuration.sweeping.runs import (
    SweptRun,
    describe,
    folder_of,
    in_order,
    raise_mistakes,
    share,
)
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.quiet import without_warnings
from fishr_exp.runs.content import UnreadableError
from fishr_exp.runs.keys import CHOICES, PARTS
from fishr_exp.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

# Which say for each job that they launch it.
_LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher",
    "hydra_plugins.hydra_joblib_launcher._core",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher",
)


class Sweep:
    """The runs of one command.

    Args:
        config: The configuration that they have in common.
        loader: Composes that of a run.
        launcher: Launches them.
        words: The overrides of each run.
        most: Runs to launch at a time, for a launcher that starts several; None: all.
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
        self.typed = set(typed_words(config.hydra))
        self.done: list[Path] = []
        self.failed: list[Path] = []
        self._common: set[str] | None = None  # the words that all runs have
        self._kept: dict[tuple[str, ...], bytes] = {}  # the configurations of the runs, by words
        self._node: object = None  # what the tracker was built from
        self._tracker: Callable[..., Any] | None = None
        for name in _LAUNCHERS:
            logging.getLogger(name).setLevel(logging.WARNING)

    def make(self) -> None:
        """Make all runs that are not done.

        Raises:
            MistakesError: If runs are not as they must be; none was started.
            Exception: What ends the sweep, such as a stop.
        """
        if not isinstance(self.config.check_first, bool):
            hint = "pass check_first=false to start without a check"
            raise ConfigError("check_first", self.config.check_first, "must be true or false", hint)
        todo = self._find()
        share(todo)
        todo = todo if self.by_number else in_order(todo)
        self._note_trunks(todo)
        outcomes.tell_notes()
        progress = Progress(len(self.done), len(self.failed), todo, self._at_a_time())
        if self.failed:
            outcomes.sweep.status = outcomes.sweep.status or 1
        try:
            with progress.shown(watching="Basic" not in self.kind):
                self._launch(todo, progress)
        finally:
            forget_trunks(self.folder)
            for line in progress.summary(self.folder):
                log.info("%s", line)

    def _find(self) -> list[SweptRun]:
        """Return the runs that are to be trained; check all of them first.

        What was composed before, for the same words and files, is not composed again to see that
        it is done.
        """
        todo: dict[Path, SweptRun] = {}
        mistakes: list[tuple[Exception, Sequence[str]]] = []
        index = Index(self.folder, digest_of_inputs(self.config))
        seen: set[Path] = set()
        with composing_once():
            bar = tqdm(self.words, desc="checking", unit="run", disable=None, leave=False, delay=2)
            for position, words in enumerate(bar, start=1):
                varied = self._varied(words) if len(self.words) > 1 else ()
                run = SweptRun(tuple(words), self.folder / str(position), position, varied)
                try:
                    known = None if self._decides(words) else index.find(words)
                    if known in seen or (known and self._is_over(known, self.config)):
                        seen.add(known)
                        continue
                    config = self._composed(words, position)
                    run.folder = folder_of(config)
                    index.add(words, config)
                    if config.share_steps == "only":
                        reason = "is for one run; a sweep trains shared steps first by itself"
                        raise ConfigError("share_steps", "only", reason, "leave it out")
                    run.failed_before = run.has_failed
                    run.from_scratch = not config.resume
                    run.to_send = bool(config.resume) and run.has_result
                    if run.folder not in seen and not self._is_over(run.folder, config):
                        with without_warnings():
                            describe(run, config, shares=not self.by_number)
                        todo[run.folder] = run
                        self._keep(words, config)
                except Exception as error:  # noqa: BLE001 - whatever a part of a user's does
                    if self.config.check_first:
                        mistakes.append((error, self._varied(words)))
                    else:
                        todo[run.folder] = run
                seen.add(run.folder)
        raise_mistakes(mistakes)
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        index.write()
        return list(todo.values())

    def _decides(self, words: Sequence[str]) -> bool:
        """Whether the words of a job, and not those of all, may say when it counts as done."""
        own = [word.lstrip("+~") for word in words if word not in self.typed]
        return any(
            word.startswith(("resume", "retry_failed", "tracker"))
            or self._selects_options(word.partition("=")[0])
            for word in own
        )

    def _selects_options(self, key: str) -> bool:
        """Whether a word selects options that may set any key: of an experiment, or a user's."""
        sources = self.config.hydra.runtime.config_sources
        own = any(source.provider not in ("hydra", "main", "schema") for source in sources)
        return key in CHOICES or (own and (key in PARTS or "/" in key))

    def _composed(self, words: Sequence[str], position: int) -> DictConfig:
        config = self.loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = position - 1
        return config

    def _keep(self, words: Sequence[str], config: DictConfig) -> None:
        """Keep the configuration of a run that is to be trained in this process."""
        if "Basic" in self.kind:
            self._kept[tuple(words)] = zlib.compress(pickle.dumps(config), 1)

    @contextlib.contextmanager
    def _composed_before(self) -> Iterator[None]:
        """In the block, let the launcher have the configurations that were composed before."""
        compose = self.loader.load_sweep_config

        def load(config: DictConfig, words: list[str]) -> DictConfig:
            *own, place = words
            kept = self._kept.pop(tuple(own), None)
            if kept is None:
                return compose(config, words)
            found: DictConfig = pickle.loads(zlib.decompress(kept))
            with open_dict(found):
                found.sweep_position = place.partition("=")[2]
                found.hydra.overrides.task.append(place)
            return found

        self.loader.load_sweep_config = load  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            self.loader.load_sweep_config = compose  # type: ignore[method-assign]

    def _varied(self, words: Sequence[str]) -> list[str]:
        """Return the words that not all runs have."""
        if self._common is None:
            self._common = set(self.words[0]).intersection(*self.words)
        return [word for word in words if word not in self._common] or list(words)

    def _is_over(self, folder: Path, config: DictConfig) -> bool:
        """Note a run that is done, or that failed and is not to be tried again."""
        if not config.resume:
            return False
        try:
            state = RunFolder(folder).state
            tracked = state == "done" and self._is_tracked(folder, config)
        except UnreadableError:  # the run itself will say what is wrong
            return False
        if tracked:
            self.done.append(folder)
        elif state == "failed" and not config.retry_failed:
            self.failed.append(folder)
        else:
            return False
        return True

    def _is_tracked(self, folder: Path, config: DictConfig) -> bool:
        """Whether the tracker has all of a run that is done."""
        node = OmegaConf.to_container(config.tracker, resolve=True) if config.tracker else None
        if node != self._node:
            self._node = node
            allowed = allowed_targets(config.get("allow_targets"))
            self._tracker = part(node, "tracker", allowed)
        return self._tracker is None or not self._tracker(RunFolder(folder)).lacks("FINISHED")

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
            if not self.by_number:
                return self.launcher.launch(jobs, initial_job_idx=runs[0].position - 1)
            # A launcher counts on from the number of its first job.
            return [
                self.launcher.launch([job], initial_job_idx=run.position - 1)[0]
                for run, job in zip(runs, jobs, strict=True)
            ]

        if "Basic" not in self.kind:
            os.environ["TQDM_DISABLE"] = "1"  # in other processes; bars of several runs overlap
        if "Basic" in self.kind:
            with self._composed_before():
                one_by_one(todo, launch, progress)
        elif "SlurmLauncher" in self.kind and self.most is None and not self.by_number:
            from fishr_exp.configuration.sweeping.cluster import through_slurm

            through_slurm(todo, launch, progress, self.launcher)
        else:
            in_waves(todo, launch, progress, self.most)
