"""The command `fishr-exp`: parse, call, and turn a user's mistake into one clear line."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fishr_exp.config import arguments, conf_dir, run_name, unknown_key
from fishr_exp.errors import ConfigError, TrainingError

log = logging.getLogger(__name__)

# Asked for before `main` sets it for itself.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


def main() -> None:
    """Run the command line; exit with 2 for a user's mistake, 1 for a run that failed."""
    # Only hydra.run.dir and hydra.sweep.subdir use it; the run's own keys are all at the root.
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and does not print and exit itself
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except KeyboardInterrupt:
        sys.exit(_say("stopped; the same command goes on from the last checkpoint", 130))
    except (ConfigError, TrainingError, HydraException, OmegaConfBaseException, OSError) as error:
        message = None if FULL_ERROR else one_line(error)
        if message is None:
            raise
        status = _status(error)
        sys.exit(status if getattr(error, "logged", False) else _say(message, status))


def job(config: DictConfig) -> float | None:
    """Run one configuration; a sweeper that optimises gets the validation accuracy."""
    from fishr_exp.run import run  # imports torch

    context = HydraConfig.get()
    choices = context.runtime.choices
    try:
        result = run(
            **arguments(config),
            folder=Path(context.runtime.output_dir),
            labels={group: choices[group] for group in ("dataset", "model", "trainer")},
        )
    except (ConfigError, TrainingError) as error:
        # Hydra tells of a sweep's first failure only, and not in the run's own log.
        log.error("fishr-exp: %s", error)
        error.logged = True  # type: ignore[union-attr]
        if context.mode is RunMode.RUN and not FULL_ERROR:
            raise SystemExit(_status(error)) from error  # else Hydra adds a line of its own
        raise
    except Exception:
        log.exception("the run failed")
        raise
    return result["validation_accuracy"]


def one_line(error: Exception) -> str | None:
    """Return a user's mistake in one line: key, value, what is allowed, how to mend it.

    Returns:
        None if the error is not one that a user can be expected to make.
    """
    if isinstance(error, ConfigError | TrainingError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is None:
            return None
        return f"output_dir: {error.filename} cannot be written ({error.strerror}); choose another"
    text = str(error)
    option = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if option:
        group, name = option.groups()
        known = ", ".join(re.findall(r"^\t(\S+)$", text, re.MULTILINE))
        return f"{group}={name}: no such option; choose of {known}"
    key = re.search(r"Key '[^']+' is not in struct\s+full_key: (\S+)", text)
    if key:
        return str(_unknown(key.group(1)))
    return re.sub(r"\s+", " ", text).strip()


def _unknown(key: str) -> ConfigError:
    """Explain an unknown key, with the keys that its group has on this command line."""
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    value = next((w.split("=", 1)[1] for w in overrides if w.split("=", 1)[0] == key), "")
    choices = [w for w in overrides if "." not in w.split("=", 1)[0] and not w.startswith("hydra")]
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = hydra.compose("config", [c for c in choices if c.split("=", 1)[0] != key])
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        known = [str(name) for name in parent if name != "_target_"]
    except (HydraException, OmegaConfBaseException, TypeError):
        known = []
    return unknown_key(key, value, known)


def _run_name(*, _root_: DictConfig) -> str:
    config = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    return run_name(config, str(_root_.hydra.runtime.choices.trainer))


def _status(error: Exception) -> int:
    return 1 if isinstance(error, TrainingError) else 2


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"fishr-exp: {message}\n")
    return status


if __name__ == "__main__":
    main()
