"""Checkpoints: all that a stopped run needs to go on to the same weights, bit for bit."""

from __future__ import annotations

import io
import logging
import random
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.identity import differences

log = logging.getLogger(__name__)

BEST = "best.pt"
_EARLIER_BEST = "best-{}.pt"


class OtherBestError(TrainingError):
    """The best weights are not those of the step that the observer holds for the best."""

    def __init__(self, path: Path, found: int | None, wanted: int) -> None:
        super().__init__(
            f"{path} holds the weights of step {found}, and the best step of this run is {wanted}; "
            "pass resume=false to start it from scratch"
        )
        self.found = found


class Checkpoints:
    """The checkpoints of a run: `best.pt`, the weights to be evaluated, and `step-N.pt`, the state.

    The newest state is kept, and the one before, in case a file is damaged.

    Args:
        folder: Where they are; it must exist when one is written.
        settings: The flat settings of the run, which are saved with every state, and compared.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = dict(settings)
        self._best_of: dict[Path, int] = {}  # state -> the step of the best weights that it knows

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state; `step` in it is the number of updates made."""
        new = self.folder / f"step-{state['step']}.pt"
        save(new, {**state, "settings": self._settings})
        self._best_of[new] = state["observer"]["best_step"]
        for old in [path for path in self._states() if path != new][1:]:
            old.unlink()
        wanted = [self._best_of.get(path) for path in self._states()]
        if None not in wanted:  # a state of an earlier start may want any
            self._forget_best_but(wanted)

    def newest(self) -> dict[str, Any] | None:
        """Read the newest state that can be read; None where there is none.

        Raises:
            ConfigError: If it belongs to a run with other settings.
            TrainingError: If there are states, and none can be read.
        """
        unreadable, damaged = None, []
        for path in self._states():
            try:
                state = load(path)
                if not isinstance(state, dict) or "settings" not in state:
                    raise TrainingError(f"{path} is not a checkpoint of a run; remove it")
            except TrainingError as error:
                unreadable = unreadable or error
                damaged.append(path)
                continue
            if differing := differences(state.pop("settings"), self._settings):
                raise ConfigError(
                    "output_dir", path, f"a checkpoint of a run with other settings: {differing}",
                    "remove it, or pass resume=false to start this run from scratch",
                )  # fmt: skip
            if unreadable:
                reason = str(unreadable).partition(";")[0]
                log.warning("%s: going on from the one before, %s", reason, path.name)
                for other in damaged:  # else it would count as the newest
                    other.unlink()
            return state
        if unreadable:
            raise unreadable
        return None

    def tidy(self) -> None:
        """Leave the newest state alone: a run that is done needs no other."""
        for old in self._states()[1:]:
            old.unlink()
        self._forget_best_but([])

    def save_best(self, state: dict[str, Any], earlier: int = 0) -> None:
        """Write the weights to be evaluated, and their `step`.

        Those before them, of step `earlier`, stay while there is a state that knows only them, from
        which a run may go on.
        """
        if earlier and earlier != state["step"] and (self.folder / BEST).exists():
            (self.folder / BEST).replace(self.folder / _EARLIER_BEST.format(earlier))
        save(self.folder / BEST, state)

    def best(self, step: int) -> dict[str, Any]:
        """Read the weights to be evaluated, of the step that the observer holds for the best.

        Raises:
            OtherBestError: If the file holds the weights of another step.
            TrainingError: If it cannot be read.
        """
        earlier = self.folder / _EARLIER_BEST.format(step)
        if earlier.exists():
            earlier.replace(self.folder / BEST)
        state = load(self.folder / BEST)
        if state.get("step") != step:
            raise OtherBestError(self.folder / BEST, state.get("step"), step)
        return state

    def _forget_best_but(self, steps: Sequence[int | None]) -> None:
        kept = [_EARLIER_BEST.format(step) for step in steps]
        for old in self.folder.glob(_EARLIER_BEST.format("*")):
            if old.name not in kept:
                old.unlink()

    def _states(self) -> list[Path]:
        """The states, the newest first."""
        steps = {path: re.fullmatch(r"step-(\d+)\.pt", path.name) for path in self.folder.glob("*")}
        found = {path: int(match[1]) for path, match in steps.items() if match}
        return sorted(found, key=lambda path: found[path], reverse=True)


class Interval:
    """Says when the next checkpoint is due: `every` so many steps, or seconds.

    Args:
        every: Steps, as a number, or seconds, as `"300s"`; None: never.

    Raises:
        ConfigError: If it is neither, or not positive.
    """

    def __init__(self, every: int | str | None) -> None:
        match = re.fullmatch(r"(\d+(?:\.\d*)?)s|(\d+)", str(every))
        seconds, steps = match.groups() if match else (None, None)
        if every is not None and not float(seconds or steps or 0) > 0:
            raise ConfigError(
                "checkpoint_every", every, "must be positive, a number of steps or seconds",
                "write 500 for steps, 300s for seconds, or null for evaluations only",
            )  # fmt: skip
        self._seconds = float(seconds) if seconds else None
        self._steps = int(steps) if steps else None
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now, by a monotonic clock."""
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU. Nothing in the file is executed.

    Modules and optimizers copy it to where they need it; Adam's counters stay on the CPU, where
    reading them does not wait for a GPU.

    Raises:
        TrainingError: If the file cannot be read as a checkpoint, or its checksums are wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch reads flipped bits without a word
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); "
            "pass resume=false to start this run from scratch"
        ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global streams: Python's, NumPy's, PyTorch's, the device's."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    return {
        "python": (version, list(internal), gauss),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the global streams to what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
