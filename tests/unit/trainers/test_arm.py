"""ARM's objective written out, its predictions, and the layer that it widens."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.arm import Arm, widen

SHAPE, SIZES = (2, 4, 3), (6, 4)


def convolution() -> nn.Sequential:
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 4), nn.ReLU())


def case(**changes) -> tuple[Arm, Model, Batch]:
    torch.manual_seed(0)
    method, network = Arm(**changes), Model(convolution(), nn.Linear(4, 3))
    network = method.prepare(network, Facts(("a", "b"), 3, 4, 10, SHAPE)).double()
    x = torch.randn(10, *SHAPE, dtype=torch.float64)
    return method, network, Batch(x, torch.arange(10) % 3, SIZES)


def by_hand(network: Model, x: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Logits of images whose context is the mean over each group."""
    maps = network.featurizer.context(x)
    groups, first = [], 0
    for n in sizes:
        mean = sum(maps[first : first + n]) / n
        groups += [torch.cat([image, mean]) for image in x[first : first + n]]
        first += n
    return network.classifier(network.featurizer.body(torch.stack(groups)))


@pytest.mark.parametrize("convention", ["intended", "published"])
def test_a_group_is_the_minibatch_of_a_domain(convention: str) -> None:
    method, network, batch = case(convention=convention)
    logits = by_hand(network, batch.x, SIZES)
    pairs = zip(batch.by_domain(logits), batch.by_domain(batch.y), strict=True)
    expected = torch.stack([F.cross_entropy(z, y) for z, y in pairs]).mean()
    found = method.objective(network, batch, 0)
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = [p for p in network.parameters() if p.requires_grad]
    ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
    for left, right in zip(ours, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-13)
    owned = {id(p) for p in weights}
    trained = {id(p) in owned for p in network.featurizer.context.parameters()}
    assert trained == {convention == "intended"}


def test_a_prediction_has_its_batch_as_context() -> None:
    _, network, batch = case()
    network.eval()
    expected = by_hand(network, batch.x, (10,))
    torch.testing.assert_close(network(batch.x), expected, rtol=1e-10, atol=1e-14)


def test_published_predictions_have_groups_of_the_size_of_a_minibatch() -> None:
    method, network, batch = case(convention="published")
    method.objective(network, Batch(batch.x, batch.y, (5, 5)), 0)
    network.eval()
    for x, sizes in ((batch.x, (5, 5)), (batch.x[:7], (7,))):
        expected = by_hand(network, x, sizes)
        torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-14)
    _, again, _ = case(convention="published")
    again.load_state_dict(network.state_dict())
    assert again.featurizer.group == 5


@pytest.mark.parametrize("network", [convolution, perceptron])
def test_the_new_channel_has_the_weights_of_the_first(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = network()
    wide = copy.deepcopy(plain)
    widen(wide, SHAPE)
    x = torch.randn(3, *SHAPE)
    first, nothing = x[:, :1], torch.zeros(3, 1, *SHAPE[1:])
    torch.testing.assert_close(wide(torch.cat([x, nothing], 1)), plain(x))
    in_the_first = torch.cat([first, nothing], 1)
    in_the_last = torch.cat([nothing, nothing, first], 1)
    torch.testing.assert_close(wide(in_the_last), plain(in_the_first))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(2, 4, 3, groups=2)], SHAPE),
        ([nn.Conv2d(4, 4, 3)], SHAPE),
        ([nn.Linear(3, 4)], SHAPE),
        ([nn.Flatten()], SHAPE),
        ([nn.Linear(24, 4)], (24,)),
    ],
)
def test_refuses_what_it_cannot_widen(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    model = Model(nn.Sequential(*layers), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match="trainer=arm: needs "):
        Arm().prepare(model, Facts(("a", "b"), 3, 4, 10, shape))


def test_refuses_a_convention() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.convention=mine"):
        Arm(convention="mine")
