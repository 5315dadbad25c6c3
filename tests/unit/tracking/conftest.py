"""A run folder as a run leaves it, without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking.mirror import unreachable

CONFIG = {"seed": 0, "test_domains": ["minus90", "plus80"], "trainer": {"gamma": 1.0}}
LABELS = {"dataset": "colored_digits", "model": "mlp", "trainer": "fishr"}
RESULT = {
    "status": "done", "labels": LABELS, "seed": 0, "test_domains": ["minus90", "plus80"],
    "selected": {"step": 4, "epoch": 2, "monitor": "risk", "uses_test_domain": False},
    "train_accuracy": 0.9, "validation_accuracy": 0.8,
    "test_accuracy": {"minus90": 0.3, "plus80": None},
}  # fmt: skip


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "epoch": step // 2, "time": 1000.5 + step, "seconds": 0.5 * step,
        "learning_rate": 0.001, "seconds_per_step": 0.01, "train_accuracy": 0.01 * step,
        "validation_accuracy": None, "losses": {"risk": 1 / step, "penalty": "NaN"},
        "accuracy": {"plus90": {"train": 0.5, "validation": 0.25}}, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "runs" / "fishr-seed0") as made:
        made.open(CONFIG)
        yield made


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own() -> Iterator[None]:
    yield
    unreachable.clear()
