"""What prepares a run again, from the configuration that it recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.permissions import ALLOW_TARGETS
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.identity import TARGET
from fishr_exp.runs.keys import KEYS
from fishr_exp.runs.methods import AVERAGE_OF
from fishr_exp.runs.reading import Run, read_runs

# Where and how the run was computed does not matter.
_HERE: dict[str, Any] = {
    "tracker": None, "averaging": None, "scheduler": None, "device": "auto", "compile": False,
    "diagnostics": False, "profile_steps": None, "tags": [], "show_test_accuracy": False,
    "resume": True, "retry_failed": False, "checkpoint_every": None,
}  # fmt: skip

# Of an average, what its runs differ in is not recorded, and the network is a plain one.
_OF_TRAINING = {
    "trainer": {TARGET: "fishr_exp.trainers.erm.Erm"},
    "optimizer": {TARGET: "torch.optim.Adam"},
    "observer": {
        TARGET: "fishr_exp.training.early_stopping.EarlyStopping", "monitor": "risk", "mode": "min",
        "patience": None, "min_delta": 0.0, "keep": "last",
    },
    "epochs": 1, "total_steps": None, "steps_per_epoch": 1, "batch_size": None,
    "sampling": "permutation", "clip_norm": None,
}  # fmt: skip
_OF_TRAINING_ROOT = {"evaluate_train": True, "evaluation_batch_size": 256}


def recorded_arguments(
    run: Run,
    changes: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """Return what prepares a run, from its recorded configuration; nothing in it is allowed more.

    Args:
        run: The run.
        changes: What to put in the place of root keys and groups.
        renamed: What parts are called then, by group.

    Raises:
        ConfigError: If it names what may not be built, or is damaged.
    """
    neutral = {k: key.neutral for k, key in KEYS.items() if key.came_later and "." not in k}
    here = {**_HERE, ALLOW_TARGETS: [], **(changes or {})}
    config: dict[str, Any] = {**neutral, **run.config, **here}
    if config.pop(AVERAGE_OF, None):
        config = {**_OF_TRAINING_ROOT, **config, **_OF_TRAINING}
    labels = {"dataset": run.dataset, "model": run.model, "trainer": run.option, **(renamed or {})}
    try:
        return arguments(OmegaConf.create(_written(config)), labels)
    except ConfigError as error:
        if error.key.partition(".")[0] in (changes or {}):  # the mistake is not the run's
            raise
        reason = f"its {error.key}={error.value}: {error.allowed}"
        hint = error.hint
        if f"{ALLOW_TARGETS}=" in hint:
            hint = "pass --allow-targets PACKAGE if you trust it"
        raise ConfigError("RUN", run.path, reason, hint) from error


def network_of(folder: Path) -> Any:
    """Build the network of a done run, with the weights of its result, from the run's folder.

    Raises:
        ConfigError: If it names what may not be built, or lacks its weights.
    """
    from fishr_exp.training.trained import trained_model  # imports torch

    (run,) = read_runs(folder).done
    return trained_model(run, recorded_arguments(run))


def _written(value: Any) -> Any:
    """Escape what OmegaConf would interpolate; a recorded value is what it is."""
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
