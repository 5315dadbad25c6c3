"""MIRO's objective written out, the layers that it compares, and its frozen copy."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.miro import Miro, by_channel, channel_dim, layers_of
from fishr_exp.training.step import make_players, optimizer_step

SHAPE = (2, 4, 3)
FACTS = Facts(("a", "b"), 3, 5, 10, SHAPE)


def case(**changes) -> tuple[Miro, Model, Batch]:
    torch.manual_seed(0)
    featurizer = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(48, 5), nn.Dropout(0.5),
    )  # fmt: skip
    network = Model(featurizer, nn.Linear(5, 3)).double()
    method = Miro(**changes)
    assert method.prepare(network, FACTS) is network
    x = torch.randn(10, *SHAPE, dtype=torch.float64)
    return method.double().train(), network.train(), Batch(x, torch.arange(10) % 3, (6, 4))


def outputs(featurizer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the convolution and of the linear layer."""
    convolution, norm, _, flatten, linear, _ = featurizer
    first = convolution(x)
    return [first, linear(flatten(norm(first).relu()))]


def test_the_objective() -> None:
    method, network, batch = case(gamma=0.7, layers=["0", "4"])
    start = copy.deepcopy(network.featurizer).eval()
    with torch.no_grad():  # as if after some updates
        for p in [*network.parameters(), *method.scales]:
            p += 0.1 * torch.randn_like(p)
    ours, theirs = outputs(network.featurizer, batch.x), outputs(start, batch.x)
    by_domain = []
    for rows in (range(6), range(6, 10)):
        of_samples = []
        for i in rows:
            total = 0.0
            for b, f, f0 in zip(method.scales, ours, theirs, strict=True):
                variance = F.softplus(b) + 1e-5
                v = variance[:, None, None] if f.dim() == 4 else variance
                total = total + ((f[i] - f0[i].detach()) ** 2 / v + v.log()).mean() / 2
            of_samples.append(total)
        by_domain.append(torch.stack(of_samples).mean())
    distance = (by_domain[0] + by_domain[1]) / 2
    torch.manual_seed(1)  # the dropout
    logits = network(batch.x)
    pairs = zip(batch.by_domain(logits), batch.by_domain(batch.y), strict=True)
    expected = torch.stack([F.cross_entropy(*p) for p in pairs]).mean() + 0.7 * distance
    torch.manual_seed(1)
    found = method.objective(network, batch, 0)
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = [*network.parameters(), *method.scales]
    ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
    for left, right in zip(ours, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-13)


def test_the_variance_starts_at_a_tenth_and_learns_at_its_own_rate() -> None:
    method, network, _ = case(lr_factor=7.0, layers=["0", "4"])
    assert [len(b) for b in method.scales] == [4, 5]
    for b in method.scales:
        torch.testing.assert_close(F.softplus(b) + 1e-5, torch.full_like(b, 0.1))
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    groups = make_players(method, network, adam)["model"].optimizer.param_groups
    assert [(len(g["params"]), g["lr"]) for g in groups] == [(8, 1e-3), (2, 7e-3)]


def test_the_copy_stays_as_it_was_and_no_hook_stays_on_the_model() -> None:
    method, network, batch = case(layers=["0", "4"])
    before = copy.deepcopy(method.original.state_dict())
    players = make_players(method, network, functools.partial(torch.optim.SGD, lr=0.1))
    for step in range(3):
        optimizer_step(method, network, players, batch, step)
    for name, value in method.original.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module.training for module in method.train().original.modules())
    for module in [*network.modules(), *method.modules()]:
        assert not module._forward_hooks


class Residual(nn.Module):
    """A network with the names of a ResNet's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.maxpool = nn.Conv2d(2, 4, 1), nn.MaxPool2d(1)
        for number in range(1, 5):
            setattr(self, f"layer{number}", nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    ("featurizer", "expected"),
    [
        (nn.Sequential(Residual(), nn.Flatten()),
         ["0.maxpool", "0.layer1", "0.layer2", "0.layer3", "0.layer4"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), ["1", "3"]),
        (nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Linear(90, 9), nn.Linear(9, 90))),
         ["1.0", "1.1"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 8)), ["1"]),
    ],
)  # fmt: skip
def test_the_layers(featurizer: nn.Module, expected: list[str]) -> None:
    assert layers_of(featurizer, None) == expected


def test_the_layers_of_torchvision() -> None:
    vit = torchvision.models.vit_b_32(weights=None)
    vit.heads = nn.Identity()
    assert layers_of(vit, None) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    resnet = torchvision.models.resnet18(weights=None)
    assert layers_of(resnet, None) == ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    assert layers_of(resnet, ["layer?.1", "conv1"]) == [
        "conv1",
        *[f"layer{i}.1" for i in range(1, 5)],
    ]


@pytest.mark.parametrize(
    ("shape", "sample", "dim"),
    [
        ((3, 5), (2, 6, 6), 1),
        ((3, 7, 5), (2, 6, 6), 2),
        ((3, 5, 4, 4), (2, 6, 6), 1),
        ((3, 4, 4, 5), (2, 6, 6), 3),
        ((3, 5, 5, 4), (2, 6, 5), 1),
    ],
)
def test_the_channels(shape: tuple[int, ...], sample: tuple[int, ...], dim: int) -> None:
    values = torch.randn(shape)
    assert channel_dim(values, sample) == dim
    found = by_channel(values, dim)
    assert found.shape == (3, 5)
    one = values.select(dim, 2)  # of a channel
    torch.testing.assert_close(found[:, 2], one.flatten(1).mean(1) if one.dim() > 1 else one)


def test_gamma_zero_has_no_copy() -> None:
    method, network, batch = case(gamma=0.0)
    assert not method.state_dict()
    assert set(method.objective(network, batch, 0).logs) == {"risk", "objective"}
    assert not method.refuses_compile


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": -1.0}, r"trainer\.gamma=-1"),
        ({"lr_factor": 0.0}, r"trainer\.lr_factor=0"),
        ({"layers": ["0", "layer9"]}, r"trainer\.layers=.*layer9 names no module.* it has 0, 1"),
    ],
)
def test_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        case(**wrong)


@pytest.mark.parametrize(
    ("featurizer", "message"),
    [
        (nn.Flatten(), "no inner modules with weights"),
        (nn.Sequential(nn.Flatten(), nn.Linear(25, 5)), "does not fit samples of 2x4x3"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(24, 5)), "is not a tensor"),
    ],
)
def test_refuses_a_network(featurizer: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Miro().prepare(Model(featurizer, nn.Linear(5, 3)), FACTS)
