"""The README tells the truth: its example runs, its files and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from fishr_exp.configuration.options import conf_dir

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_loop_example_runs_and_matches_the_trainer() -> None:
    from fishr_exp.core.contracts import Batch, Model
    from fishr_exp.trainers.fishr import Fishr

    section = README[README.index("## In your own training loop") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
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


def groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and p.name != "hydra")


def options(group: str) -> set[str]:
    return {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def keys(group: str) -> set[str]:
    """The keys of a group, of whatever option, also where the option writes to the root."""
    found: set[str] = set()
    for path in (conf_dir() / group).glob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        found |= {*content} | {*(content.get(group) or {})}
    return found


@pytest.mark.parametrize("group", groups())
def test_what_a_group_is_said_to_have_exists(group: str) -> None:
    """The row names a choice, so that a new option needs no edit; what it names must exist."""
    row = re.search(rf"^\| `{group}` \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    named = re.findall(r"`([a-z_0-9]+)`", row.group(1))
    assert set(named) & options(group)
    for name in named:
        assert name in options(group) | keys(group), f"there is no {group}={name}"


@pytest.mark.parametrize("group", groups())
def test_overrides_choose_what_exists(group: str) -> None:
    own = {"mine"}  # the option that the README adds
    for name in re.findall(rf"(?<![\w./]){group}=([a-z_0-9]+)", README):
        assert name in options(group) | own, f"there is no {group}={name}"
    gone = {"gama"}  # the mistake that the README makes on purpose
    for key in re.findall(rf"(?<![\w./]){group}\.([a-z]\w*)=", README):
        assert key in keys(group) | gone, f"there is no {group}.{key}"


def test_help_is_said_to_list_all() -> None:
    assert "`fishr-exp --help` lists all" in README


def test_named_files_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)", README)
    named = re.findall(r"`((?:docs|fishr_exp|conf|scripts)/[^`]*)`", README)
    for target in [*linked, *named]:
        assert (ROOT / target).exists(), target
