"""Checkpoints: all that a stopped run needs to resume to the same weights, bit for bit."""

from __future__ import annotations

import io
import logging
import random
import re
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.core.files import require_file
from fishr_exp.runs.content import anything, count, finite, mapping, number, several, take
from fishr_exp.runs.files import write_atomically
from fishr_exp.runs.identity import differences
from fishr_exp.runs.names import OF_CHECKPOINTS

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

    def newest(self, accept: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Read the newest state that the run can resume from; None where there is none.

        Args:
            accept: Tries a state; if it raises, the file counts as damaged.

        Raises:
            ConfigError: If it belongs to a run with other settings, or to no run.
            TrainingError: If there are states, and none can be used.
        """
        unreadable, damaged = None, []
        for path in self._states():
            try:
                state = self._read(path)
                accept(state)
            except (ConfigError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever is in the file
                unreadable = unreadable or _damaged(path, error)
                damaged.append(path)
                continue
            if unreadable:
                reason = str(unreadable).partition(";")[0]
                log.warning("%s: continuing from the one before, %s", reason, path.name)
                for other in damaged:  # else it would count as the newest
                    other.unlink()
            return state
        if unreadable:
            raise unreadable
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            require_file(path)
        except OSError as error:
            reason = f"this checkpoint cannot be read ({error.strerror})"
            raise ConfigError("output_dir", path, reason, "move it away") from error
        state = load(path)
        if not isinstance(state, dict) or "settings" not in state:
            raise ConfigError(
                "output_dir", path, "this file is named like a checkpoint, and is not one of a run",
                "move it away",
            )  # fmt: skip
        there = take(state, "settings", mapping(anything))
        if differing := differences(there, self._settings):
            raise ConfigError(
                "output_dir", path, f"a checkpoint of a run with other settings: {differing}",
                "remove it, or pass resume=false to start this run from scratch",
            )  # fmt: skip
        if path.name != f"step-{state.get('step')}.pt":
            raise ValueError("its step is not that of its name")
        return {key: value for key, value in state.items() if key != "settings"}

    def tidy(self) -> None:
        """Leave the newest state alone: a run that is done needs no other."""
        for old in self._states()[1:]:
            old.unlink()
        self._forget_best_but([])

    def save_best(self, state: dict[str, Any], earlier: int = 0) -> None:
        """Write the weights to be evaluated, and their `step`.

        Those before them, of step `earlier`, stay while there is a state that knows only them, from
        which a run may resume.
        """
        if earlier and earlier != state["step"] and (self.folder / BEST).exists():
            (self.folder / BEST).replace(self.folder / _EARLIER_BEST.format(earlier))
        save(self.folder / BEST, state)

    def best(self, step: int, like: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the weights to be evaluated, of the step that the observer holds for the best.

        Where a run resumes from a state before the newest best weights, those of its own step are
        put in their place.

        Args:
            step: That step.
            like: Weights of the network that they are for, by name.

        Raises:
            OtherBestError: If the file holds the weights of another step.
            TrainingError: If it cannot be read, or holds no such weights.
        """
        path, earlier = self.folder / BEST, self.folder / _EARLIER_BEST.format(step)
        if earlier.exists():
            earlier.replace(path)
        state = load(path)
        try:
            found = take(mapping(anything)(state, "it"), "step", count)
            weights = take(state, "model", mapping(anything))
            if {n: _shape(w) for n, w in weights.items()} != {
                n: _shape(w) for n, w in like.items()
            }:
                raise ValueError("its weights are not those of the model")
        except ValueError as error:
            raise _damaged(path, error) from error
        if found != step:
            raise OtherBestError(path, found, step)
        return state

    def _forget_best_but(self, steps: Sequence[int | None]) -> None:
        kept = [_EARLIER_BEST.format(step) for step in steps]
        for old in self.folder.glob(_EARLIER_BEST.format("*")):
            if OF_CHECKPOINTS.fullmatch(old.name) and old.name not in kept:
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
        also: A step at which one is due besides.

    Raises:
        ConfigError: If it is neither, or not positive.
    """

    def __init__(self, every: int | str | None, also: int | None = None) -> None:
        match = re.fullmatch(r"(\d+(?:\.\d*)?)s|(\d+)", str(every))
        seconds, steps = match.groups() if match else (None, None)
        if every is not None and not float(seconds or steps or 0) > 0:
            raise ConfigError(
                "checkpoint_every", every, "must be positive, a number of steps or seconds",
                "write 500 for steps, 300s for seconds, or null for evaluations only",
            )  # fmt: skip
        self._seconds = float(seconds) if seconds else None
        self._steps = int(steps) if steps else None
        self._also = also
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now, by a monotonic clock."""
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        if step == self._also:
            return True
        if self._steps is not None:
            return step % self._steps == 0
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that a reader sees the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> Any:
    """Read what `save` wrote, onto the CPU. Nothing in the file is executed.

    Modules and optimizers copy it to where they need it; Adam's counters stay on the CPU, where
    reading them does not wait for a GPU.

    Raises:
        TrainingError: If the file cannot be read as a checkpoint, or its checksums are wrong.
    """
    try:
        require_file(path)
        with zipfile.ZipFile(path) as archive:  # PyTorch reads flipped bits without a word
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        known = error if isinstance(error, OSError) else ValueError(type(error).__name__)
        raise _damaged(path, known) from error


def check_state(state: Mapping[str, Any], total_steps: int) -> None:
    """Check the plain values of a state, which nothing else does; modules check their tensors.

    Raises:
        ValueError: If one is missing, or is not what it should be.
    """
    step = take(state, "step", count)
    observer = take(state, "observer", mapping(anything))
    take(observer, "best", number)
    take(observer, "waited", count)
    if not take(observer, "best_step", count) <= step <= total_steps:
        raise ValueError(f"its step {step} is not one of the run's {total_steps}")
    take(state, "seconds", finite)
    take(state, "waited", finite, 0.0)
    take(state, "random", several(anything))
    for name, values in take(state, "logged", mapping(anything)).items():
        if not (isinstance(values, Tensor) and values.ndim == 1 and 0 < len(values) <= step):
            raise ValueError(f"logged.{name} is not one number for each step")


def _damaged(path: Path, error: Exception) -> TrainingError:
    """Say that a file is no checkpoint to resume from, and what helps."""
    if isinstance(error, TrainingError):  # from `load`
        return error
    fix = "pass resume=false to start this run from scratch"
    reason = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason, fix = error.strerror, f"move it away, or {fix}"
    elif isinstance(error, KeyError):
        reason = f"lacks {error}"
    elif str(error):
        reason = " ".join(str(error).split())
    return TrainingError(f"{path} is not a readable checkpoint ({reason:.200}); {fix}")


def _shape(value: object) -> object:
    return value.shape if isinstance(value, Tensor) else type(value)


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
