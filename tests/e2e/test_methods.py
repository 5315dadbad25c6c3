"""A run of every method that is stopped in the middle resumes to the bits of the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from fishr_exp.configuration.options import conf_dir

from .conftest import caller, stop_before

SHORT = (
    "model.hidden=8",
    "total_steps=6",
    "steps_per_epoch=3",
    "batch_size=8",
    "evaluate_train=false",
    "tracker=none",
)


def _own(option: Path) -> bool:
    """Whether an option is a method, and not a preset of another option."""
    return "defaults" not in yaml.safe_load(option.read_text())


QUICK = ("dann", "fish", "idm")  # a player's turn, weights that move, a moving average
METHODS = [
    pytest.param(path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
    for path in sorted((conf_dir() / "trainer").glob("*.yaml"))
    if _own(path)
]


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_to_the_bits_of_the_whole_run(name: str, tmp_path: Path) -> None:
    """Stopped between two evaluations, after the penalty began to act."""
    keys = yaml.safe_load((conf_dir() / "trainer" / f"{name}.yaml").read_text())
    words = [f"trainer={name}"]
    words += [f"trainer.{key}=2" for key in keys if key.endswith("anneal_steps")]
    whole = caller(tmp_path / "whole")(*words, tiny=SHORT)
    assert whole.status == 0, whole.err
    with pytest.MonkeyPatch.context() as patch:
        stop_before(4, patch)
        stopped = caller(tmp_path / "parts")(*words, tiny=SHORT)
    assert stopped.status == 130, stopped.err
    done = caller(tmp_path / "parts")(*words, tiny=SHORT)
    assert done.status == 0, done.err
    timeless = [
        [{k: v for k, v in record.items() if "seconds" not in k and k != "time"} for record in of]
        for of in (whole.records(), done.records())
    ]
    assert timeless[0] == timeless[1]
    for kind in ("best", "last"):
        left, right = (outcome.checkpoint(kind)["model"] for outcome in (whole, done))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
