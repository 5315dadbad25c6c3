"""MIRO's own update beside ours: a ResNet-18 with the same weights and minibatches, float64.

`MIRO=DIR` names a checkout of kakaobrain/miro; without it the test is skipped.
"""

from __future__ import annotations

import copy
import functools
import importlib
import os
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Batch, Facts, Minibatch, Model
from fishr_exp.trainers.miro import Miro
from fishr_exp.training.step import make_players, optimizer_step

SHAPE, CLASSES, STEPS = (3, 224, 224), 3, 3


class Values(dict):  # type: ignore[type-arg]
    """Hyperparameters, by key and by attribute."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their algorithm on a ResNet-18 with random weights, which their code would download."""
    path = os.environ.get("MIRO")
    if not path:
        pytest.skip("MIRO=DIR does not name a checkout of kakaobrain/miro")
    for name in [name for name in sys.modules if name.partition(".")[0] == "domainbed"]:
        monkeypatch.delitem(sys.modules, name)  # another project's package of that name
    for name in ("clip", "domainbed.algorithms"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.syspath_prepend(path)
    sys.modules["domainbed.algorithms"].Algorithm = Base  # type: ignore[attr-defined]
    torch.manual_seed(0)
    start = torchvision.models.resnet18(weights=None).state_dict()

    def resnet18(**_: object) -> nn.Module:
        network = original(weights=None)
        network.load_state_dict(start)
        return network

    original = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "resnet18", resnet18)
    spec = importlib.util.spec_from_file_location(
        "miro_of_others", f"{path}/domainbed/algorithms/miro.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = Values(
        model="resnet18", pretrained=True, feat_layers="stem_block", resnet_dropout=0.0, ld=0.3,
        lr=1e-3, lr_mult=10.0, optimizer="adam", weight_decay=1e-2,
    )  # fmt: skip
    made = module.MIRO(SHAPE, CLASSES, 2, values).double()
    made.train()
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "domainbed"]:
        sys.modules.pop(name)


class Base(nn.Module):
    """What their algorithms derive from."""

    def __init__(self, input_shape: Any, num_classes: int, num_domains: int, hparams: Any) -> None:
        super().__init__()
        self.input_shape, self.hparams = input_shape, hparams


def test_miro(theirs: Any) -> None:
    network = torchvision.models.resnet18(weights=None).double()
    network.fc = nn.Identity()
    network.load_state_dict(theirs.featurizer.network.state_dict())
    model = Model(network, copy.deepcopy(theirs.classifier))
    ours = Miro(0.3)
    ours.prepare(model, Facts(("a", "b"), CLASSES, 512, STEPS, SHAPE))
    ours.double()
    for module in network.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    adam = functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-2)
    players = make_players(ours, model, adam)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        batch = Batch.join([
            Minibatch(
                torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64),
                torch.randint(CLASSES, (2,), generator=generator),
            )
            for _ in range(2)
        ])  # fmt: skip
        theirs.update([*batch.x.split(2)], [*batch.y.split(2)])
        optimizer_step(ours, model, players, batch, step)
    for left, right in zip(theirs.var_encoders, ours.scales, strict=True):
        assert (left.b.flatten() - right).abs().max() < 1e-8
    difference = max(
        (left - right).abs().max().item()
        for left, right in zip(theirs.network.parameters(), model.parameters(), strict=True)
    )
    assert difference < 1e-8
