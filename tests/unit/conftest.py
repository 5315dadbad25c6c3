"""Hand-made run folders."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.runs.run_folder import RunFolder


def config_of(method: str, gamma: float | None, seed: int, **settings: Any) -> dict[str, Any]:
    """A small resolved configuration; `settings` go on top, as whole top-level values."""
    trainer: dict[str, Any] = {"_target_": f"fishr_exp.trainers.{method}.{method.title()}"}
    if gamma is not None:
        trainer |= {"gamma": gamma, "convention": "paper"}
    return {
        "dataset": {"_target_": "fishr_exp.data.datasets.digits.colored_digits", "seed": seed},
        "model": {"_target_": "fishr_exp.models.mlp.mlp", "hidden": 390},
        "trainer": trainer,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "seed": seed,
        "test_domains": ["minus90"],
        "batch_size": 64,
        "device": "auto",
        **settings,
    }


class Factory:
    """Writes done, failed and unfinished runs under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def start(self, config: dict[str, Any]) -> RunFolder:
        """A run that has begun."""
        self.count += 1
        folder = RunFolder(self.root / f"{self.count:03d}")
        folder.open(config)
        folder.append({"step": 10, "epoch": 1})
        folder.close()
        return folder

    def done(
        self,
        method: str,
        gamma: float | None,
        seed: int,
        test: float | dict[str, float],
        validation: float | None = 0.7,
        train: float | None = 0.8,
        labels: dict[str, str] | None = None,
        step: int = 10,
        training: tuple[str, ...] = ("plus90", "plus80"),
        **settings: Any,
    ) -> RunFolder:
        """A run with the given accuracies; `test` in minus90, or by domain."""
        by_domain = test if isinstance(test, dict) else {"minus90": test}
        settings.setdefault("test_domains", list(by_domain))
        folder = self.start(config_of(method, gamma, seed, **settings))
        monitor = settings.get("observer", {}).get("monitor", "validation_accuracy")
        result = {
            "labels": {"dataset": "colored_digits", "model": "mlp", "trainer": method}
            | (labels or {}),
            "gamma": gamma,
            "seed": seed,
            "training_domains": list(training),
            "test_domains": list(by_domain),
            "selected": {
                "step": step,
                "epoch": 1,
                "monitor": monitor,
                "uses_test_domain": any(name in monitor for name in by_domain),
            },
            "train_accuracy": train,
            "validation_accuracy": validation,
            "test_accuracy": by_domain,
            "seconds": 1.5,
        }
        folder.finish(result)
        return folder

    def sweep(self, gammas: list[float], seeds: int = 3, **settings: Any) -> None:
        """ERM, and Fishr with each gamma; test accuracy grows with gamma, validation falls."""
        draw = random.Random(0)
        for seed in range(seeds):
            shift = draw.uniform(-0.02, 0.02)  # what methods share at one seed
            erm = 0.15 + shift + draw.uniform(-0.005, 0.005)
            self.done("erm", None, seed, erm, 0.85 + shift / 2, 0.87 + shift / 2, **settings)
            for gamma in gammas:
                gain = 0.5 * gamma / (gamma + 50)
                test = 0.16 + gain + shift + draw.uniform(-0.01, 0.01)
                rest = 0.85 - gain / 4 + shift / 2
                self.done("fishr", gamma, seed, test, rest, rest + 0.02, **settings)


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    return Factory(tmp_path / "runs")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare with a file in tests/golden; UPDATE_GOLDEN=1 rewrites it instead."""
    import os

    folder = request.config.rootpath / "tests" / "golden"

    def compare(name: str, text: str) -> None:
        path = folder / name
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
