"""`hydra/sweeper=optuna`. It stands here because Hydra takes sweepers from this package alone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.run_folder import RunFolder

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Search with Optuna; conf/hydra/sweeper/optuna.yaml describes the arguments."""

    def __init__(
        self,
        params: Mapping[str, Any],
        n_trials: int,
        n_jobs: int,
        storage: str,
        sampler: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.params = params
        self.storage = storage
        self.options: dict[str, Any] = {"n_trials": n_trials, "n_jobs": n_jobs, "seed": seed}
        self.options["sampler"] = sampler

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if importlib.util.find_spec("optuna") is None:
            hint = "pip install optuna"
            raise ConfigError("hydra/sweeper", "optuna", "Optuna is not installed", hint)
        from fishr_exp.configuration.search import (  # imports optuna and torch
            Space,
            open_study,
            search,
        )

        if self.options["n_trials"] < 1:
            raise ConfigError(
                "hydra.sweeper.n_trials", self.options["n_trials"], "must be 1 or more"
            )
        if not str(self.options["sampler"]["_target_"]).startswith("optuna.samplers."):
            name = self.options["sampler"]["_target_"]
            raise ConfigError("hydra.sweeper.sampler._target_", name, "must be in optuna.samplers")
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        launcher, loader = self.launcher, self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        space = Space.of(parser.parse_overrides(words))
        config = loader.load_sweep_config(self.config, list(space.fixed))
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        names = space.names(OmegaConf.to_container(own, resolve=True))  # type: ignore[arg-type]
        launched = 0

        def launch(jobs: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
            nonlocal launched
            returns = launcher.launch(jobs, initial_job_idx=launched)
            launched += len(jobs)
            return returns

        with RunFolder(Path(self.config.hydra.sweep.dir)) as folder:
            folder.lock()  # two searches at once would take up each other's trials
            resume, retry_failed = config.resume, config.retry_failed
            study = open_study(self.storage, names, resume=resume, retry_failed=retry_failed)
            log.info("study %s in %s", study.study_name, self.storage)
            search(study, space, launch, **self.options)
