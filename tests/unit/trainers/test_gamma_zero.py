"""At weight zero Fishr is ERM to the last bit, whatever it measures and on whatever network."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Model, Trainer
from fishr_exp.models.backbone import backbone
from fishr_exp.models.mnist_cnn import mnist_cnn
from fishr_exp.trainers._one_pass import OnePass
from fishr_exp.trainers.composed import _methods as all_methods
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.training.step import make_players, optimizer_step


def cnn() -> Model:
    return mnist_cnn(input_shape=(1, 28, 28), num_classes=3)


def frozen_resnet() -> Model:
    return backbone(
        input_shape=(3, 32, 32), num_classes=3, library="torchvision", name="resnet18",
        pretrained=False, weights_file=None, freeze_bn=True, dropout=0.1,
    )  # fmt: skip


def mlp_with_dropout() -> Model:
    parts = nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Dropout(0.5)
    return Model(nn.Sequential(*parts), nn.Linear(6, 3))


def trained(method: Trainer, make: Callable[[], Model]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = make()
    players = make_players(method, network, functools.partial(torch.optim.Adam, lr=1e-3))
    shape = (3, 32, 32) if make is frozen_resnet else (1, 28, 28)
    for step in range(3):
        batch = Batch(torch.randn(8, *shape), torch.randint(3, (8,)), (4, 4))
        optimizer_step(method, network, players, batch, step)
    return network.state_dict()


@pytest.mark.parametrize("make", [cnn, frozen_resnet])
@pytest.mark.parametrize("scope", ["classifier", "all", "featurizer"])
@pytest.mark.parametrize("wait", [0, 3])
def test_weight_zero_is_erm(make: Callable[[], Model], scope: str, wait: int) -> None:
    method = Fishr(0.0) if wait == 0 else Fishr(5.0, anneal_steps=wait)
    method.scope = scope
    expected, found = trained(Erm(), make), trained(method, make)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_weight_zero_is_erm_where_classes_are_put_together() -> None:
    expected, found = (
        trained(method, frozen_resnet) for method in (Erm(), Fishr(0.0, within_classes=True))
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


WEIGHTED = [kind for _, kind in all_methods() if "gamma" in inspect.signature(kind).parameters]


@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("wait", [0, 3])
def test_every_penalty_of_weight_zero_leaves_dropout_as_it_was(
    kind: type[OnePass], wait: int
) -> None:
    method = kind(gamma=0.0) if wait == 0 else kind(gamma=5.0, anneal_steps=wait)
    if wait and method.weight(0) != 0:
        pytest.skip("its weight is 1 until it acts")
    expected, found = trained(Erm(), mlp_with_dropout), trained(method, mlp_with_dropout)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
