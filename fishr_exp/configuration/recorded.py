"""What prepares a run again, from the configuration that it recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from fishr_exp.configuration.binding import arguments
from fishr_exp.configuration.permissions import ALLOW_TARGETS
from fishr_exp.core.errors import ConfigError
from fishr_exp.runs.keys import KEYS
from fishr_exp.runs.reading import Run

# Where and how the run was made does not matter.
_HERE: dict[str, Any] = {
    "tracker": None, "averaging": None, "scheduler": None, "device": "auto", "compile": False,
    "diagnostics": False, "profile_steps": None, "tags": [], "show_test_accuracy": False,
    "resume": True, "retry_failed": False, "checkpoint_every": None,
}  # fmt: skip


def recorded_arguments(run: Run) -> Any:
    """Return what prepares a run, from its recorded configuration; nothing in it is allowed more.

    Raises:
        ConfigError: If it names what may not be built, or is damaged.
    """
    neutral = {k: key.neutral for k, key in KEYS.items() if key.came_later and "." not in k}
    config: dict[str, Any] = {**neutral, **run.config, **_HERE, ALLOW_TARGETS: []}
    labels = {"dataset": run.dataset, "model": run.model, "trainer": run.option}
    try:
        return arguments(OmegaConf.create(_written(config)), labels)
    except ConfigError as error:
        reason = f"its {error.key}={error.value}: {error.allowed}"
        hint = error.hint
        if f"{ALLOW_TARGETS}=" in hint:
            hint = "pass --allow-targets PACKAGE if you trust it"
        raise ConfigError("RUN", run.path, reason, hint) from error


def _written(value: Any) -> Any:
    """Escape what OmegaConf would interpolate; a recorded value is what it is."""
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
