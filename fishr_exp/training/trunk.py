"""Steps that several runs of a sweep share: a trunk, trained once, from which the others continue.

Runs that differ only in keys that act from a known step s on (gamma, before `anneal_steps`) compute
the same s steps. The first of them leaves its state after s updates, the trunk, in the folder of
the sweep; the others start from it:

    .trunks/DIGEST/state.pt       a checkpoint after s updates, with records and best weights so far
    .trunks/DIGEST/wanted/RUN     empty; the run of that name may still need the trunk

A trunk is an ordinary checkpoint before the evaluation at step s, if there is one, so a run that
continues from it comes to the bits of a run that was trained alone. Whoever needs it no longer
removes its name; with the last one the trunk goes. A trunk that is missing or damaged costs a run
nothing but the steps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishr_exp.core.contracts import Trainer
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.runs.content import anything, mapping, optional, several, take, text
from fishr_exp.runs.identity import differences, digest
from fishr_exp.runs.names import TRUNKS
from fishr_exp.runs.records import Evaluation
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.checkpoint import BEST, check_state, load, save

log = logging.getLogger(__name__)

_STATE, _WANTED = "state.pt", "wanted"
_OWN = ("settings", "data", "records", "best", "run")  # beside the state of the training


@dataclass(frozen=True)
class Trunk:
    """The steps that runs share, and where their state lies.

    Attributes:
        folder: The folder of the trunk; it need not exist.
        step: The number of shared updates.
        settings: The flat settings that these steps depend on.
    """

    folder: Path
    step: int
    settings: Mapping[str, Any]

    @property
    def is_there(self) -> bool:
        """Whether the shared steps were trained."""
        return (self.folder / _STATE).exists()

    @property
    def wanted(self) -> set[str]:
        """The names of the runs that may need it."""
        try:  # another run may just remove it
            return {*os.listdir(self.folder / _WANTED)}
        except OSError:
            return set()

    def want(self, runs: Iterable[str]) -> None:
        """Note which runs need it.

        Raises:
            OSError: If that cannot be written.
        """
        (self.folder / _WANTED).mkdir(parents=True, exist_ok=True)
        for name in runs:
            (self.folder / _WANTED / name).touch()

    def release(self, run: str) -> None:
        """Note that a run does not need it any longer; remove a trunk that nobody needs."""
        with contextlib.suppress(OSError):
            (self.folder / _WANTED / run).unlink(missing_ok=True)
        if not self.wanted:
            self.remove()

    def forget_state(self) -> None:
        """Remove a state that cannot be used."""
        with contextlib.suppress(OSError):
            (self.folder / _STATE).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the trunk, and the folder of all trunks if it was the last one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def write(self, state: Mapping[str, Any], data: Mapping[str, str], run: RunFolder) -> None:
        """Write the state after the shared steps, for the other runs; without room, do not.

        Args:
            state: Of the training, after `step` updates.
            data: What the data are, by domain.
            run: The folder of the run that trained the steps.
        """
        best = run.checkpoints / BEST
        try:
            own = {
                "settings": dict(self.settings),
                "data": dict(data),
                "records": run.records(),
                "best": load(best) if state["observer"]["best_step"] and best.exists() else None,
                "run": run.path.name,
            }
            save(self.folder / _STATE, {**state, **own})
        except (OSError, ConfigError, TrainingError) as error:
            log.warning("the first %d steps cannot be shared: %s", self.step, damage(error))

    def read(self, data: Mapping[str, str], total_steps: int) -> dict[str, Any]:
        """Read the state, with `records`, `best` and `run`, the name of the run that trained it.

        Args:
            data: What the data are now, by domain.
            total_steps: Updates of the run that is to continue.

        Raises:
            ValueError: If it is of other settings or data, or no state of a training.
            TrainingError: If it cannot be read.
        """
        found = mapping(anything)(load(self.folder / _STATE), "it")
        if differing := differences(take(found, "settings", mapping(anything)), self.settings):
            raise ValueError(f"it is of other settings: {differing}")
        if take(found, "data", mapping(text)) != data:
            raise ValueError("it is of other data")
        check_state(found, total_steps)
        if found["step"] != self.step:
            raise ValueError(f"it is of step {found['step']}")
        for record in take(found, "records", several(mapping(anything))):
            Evaluation.from_json(record)
        best = take(found, "best", optional(mapping(anything)))
        if best is not None and best.get("step") != found["observer"]["best_step"]:
            raise ValueError("its best weights are of another step")
        take(found, "run", text)
        return found


def state_of_training(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a trunk is the state of the training."""
    return {key: value for key, value in found.items() if key not in _OWN}


def trunks(
    runs: Path, trainer: Trainer, values: Mapping[str, Any], *, diagnostics: bool | str
) -> list[Trunk]:
    """Return the trunks that a run could start from, the longest first; none need exist.

    Args:
        runs: The folder of the sweep's runs.
        trainer: Its method.
        values: Its flat settings.
        diagnostics: Whether its records hold diagnostics, and which. They look at the next step
            with the penalty, so with a `penalty_interval` above 1 nothing is shared.
    """
    if diagnostics and trainer.penalty_interval > 1:
        return []
    found = []
    for step in sorted({*trainer.acts_from.values()} - {0}, reverse=True):
        later = [f"trainer.{key}" for key, first in trainer.acts_from.items() if first >= step]
        kept = {key: value for key, value in values.items() if key not in later}
        kept |= {"diagnostics": diagnostics, "shared steps": step}
        found.append(Trunk(runs / TRUNKS / digest(kept), step, kept))
    return found


def find_trunk(candidates: Callable[[], list[Trunk]], run: Path) -> Trunk | None:
    """Return the trunk that a sweep has noted for a run; None if there is none.

    Args:
        candidates: Returns what the run could start from.
        run: The run folder.
    """
    if not (run.parent / TRUNKS).is_dir():
        return None
    return next((trunk for trunk in candidates() if run.name in trunk.wanted), None)


def damage(error: Exception) -> str:
    """Say in a few words why a trunk cannot be used."""
    if isinstance(error, ConfigError):
        return str(error.allowed)
    return str(error).partition("; ")[0] or type(error).__name__
