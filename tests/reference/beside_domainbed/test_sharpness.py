"""SAGM and GSAM beside their authors' optimizers: the same weights and minibatches, float64.

`SAGM=DIR` names the folder `domainbed/sagm` of a checkout of Wang-pengfei/SAGM, `GSAM=DIR` the
folder `gsam` of one of juntang-zhuang/GSAM; without them these tests are skipped.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.trainers._perturbed import Perturbed
from fishr_exp.trainers.gsam import Gsam
from fishr_exp.trainers.sagm import Sagm
from fishr_exp.training.step import make_players, optimizer_step

from .conftest import CLASSES, INPUTS, minibatches


def package(variable: str) -> Any:
    """Import the folder that a variable of the environment names, as a package."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable}=DIR does not name the authors' package")
    path, name = Path(folder) / "__init__.py", variable.lower()
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Constant:
    """A schedule of their radius that does not change it."""

    def step(self) -> float:
        return 0.3


def difference(make_theirs: Any, method: Perturbed) -> float:
    """The largest difference of a weight after four updates."""
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Tanh())
    model = Model(featurizer, nn.Linear(8, CLASSES)).double()
    other = copy.deepcopy(model)
    adam = functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-2)
    theirs = make_theirs(other, adam(other.parameters()))
    players = make_players(method, model, adam)
    for step in range(4):
        batch = Batch.join(minibatches(3, 8, step, (INPUTS,)))
        theirs.set_closure(F.cross_entropy, batch.x, batch.y)
        theirs.step()
        optimizer_step(method, model, players, batch, step)
    pairs = [
        (value, other.state_dict()[name])
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    ]
    return max((ours - alone).abs().max().item() for ours, alone in pairs)


def test_sagm() -> None:
    module = package("SAGM")

    def make(model: Model, adam: torch.optim.Optimizer) -> Any:
        return module.SAGM(model.parameters(), adam, model, alpha=0.2, rho_scheduler=Constant())

    assert difference(make, Sagm(0.3, 0.2)) < 1e-12


def test_gsam() -> None:
    module = package("GSAM")

    def make(model: Model, adam: torch.optim.Optimizer) -> Any:
        return module.GSAM(
            model.parameters(), adam, model, gsam_alpha=0.4, rho_scheduler=Constant()
        )

    assert difference(make, Gsam(0.3, 0.4)) < 1e-12
