"""What Hydra writes beside a run, on a disk that is full: a run that cannot write says so itself.

Importing this module sees to it for the whole process, as `secrecy` does for passwords.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hydra.core import utils
from omegaconf import DictConfig

from fishr_exp.configuration.console import warn_once

_save_config = utils._save_config
_configure_log = utils.configure_log


def _save_if_possible(config: DictConfig, filename: str, output_dir: Path) -> None:
    """Write a copy of the configuration; `config.json` of the run is the one that counts."""
    try:
        _save_config(config, filename, output_dir)
    except OSError as error:
        warn_once(
            f"Hydra's copy of the configuration cannot be written ({error.strerror or error})"
        )
        with contextlib.suppress(OSError):
            (output_dir / filename).unlink(missing_ok=True)  # what there is of it
            output_dir.rmdir()  # if it holds nothing else


def _configure_if_possible(config: Any, verbose: Any = False) -> None:
    """Set the logs up; without its file if that cannot be made."""
    try:
        _configure_log(config, verbose)
    except ValueError as error:
        cause = _os_error(error)
        if cause is None:
            raise
        warn_once(f"the log cannot be written ({cause.strerror or cause})")


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


utils._save_config = _save_if_possible  # type: ignore[assignment]
utils.configure_log = _configure_if_possible  # type: ignore[assignment]
