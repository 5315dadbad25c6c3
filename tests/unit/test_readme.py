"""The README tells the truth: its example runs, its files and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fishr_exp.configuration.binding import conf_dir

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_loop_example_runs_and_matches_the_trainer() -> None:
    from fishr_exp.core.contracts import Batch, Model
    from fishr_exp.trainers.fishr import Fishr

    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    torch.manual_seed(0)
    sizes = (6, 5)
    inputs, targets = torch.randn(11, 4), torch.randint(3, (11,))
    model = Model(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    names = {"model": model, "inputs": inputs, "targets": targets, "sizes": sizes, "gamma": 5.0}
    exec(code.group(1), {"torch": torch, **names}, scope := {})
    expected = Fishr(5.0).objective(model, Batch(inputs, targets, sizes), 0).total
    torch.testing.assert_close(scope["loss"], expected)
    assert model.featurizer.weight.grad is not None


@pytest.mark.parametrize("group", ["dataset", "model", "optimizer", "observer", "tracker"])
def test_every_option_is_listed(group: str) -> None:
    row = re.search(rf"^\| `{group}` \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    for yaml in (conf_dir() / group).glob("*.yaml"):
        assert f"`{yaml.stem}`" in row.group(1), f"{group}={yaml.stem} is not in the README"


@pytest.mark.parametrize("group", ["trainer", "experiment"])
def test_every_listed_option_exists(group: str) -> None:
    """A new method or experiment needs no row of its own; the row names a choice of them."""
    row = re.search(rf"^\| `{group}` \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    for name in re.findall(r"`([a-z_0-9]+)`", row.group(1)):
        assert (conf_dir() / group / f"{name}.yaml").exists(), f"there is no {group}={name}"


def test_named_files_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    named = re.findall(r"`((?:docs|fishr_exp|conf|scripts)/[^`]*)`", README)
    for target in [*linked, *(name for name in named if not name.split("/")[-1].startswith("x."))]:
        assert (ROOT / target).exists(), target
