"""Checkpoints: all that a stopped run needs to go on to the same weights, bit for bit."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fishr_exp.errors import TrainingError
from fishr_exp.results.run_folder import write_atomically


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
        TrainingError: If the file cannot be read as a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"{path} is no readable checkpoint ({type(error).__name__}); "
            "pass resume=false to start this run anew"
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
