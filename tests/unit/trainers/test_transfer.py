"""Transfer's step written out."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.transfer import Transfer
from fishr_exp.training.step import make_players, optimizer_step

FACTS = Facts(("a", "b", "c"), 3, 4, 100)


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return Batch(x, torch.randint(3, (n,), generator=generator), sizes)


def risks(network: Model, head: nn.Linear, data: Batch) -> list[torch.Tensor]:
    parts = zip(data.by_domain(data.x), data.by_domain(data.y), strict=True)
    return [F.cross_entropy(head(network.featurizer(x)), y) for x, y in parts]


def gap(network: Model, head: nn.Linear, data: Batch) -> torch.Tensor:
    found = risks(network, head, data)
    return max(found) - min(found)


@pytest.mark.parametrize("radius", [2.0, 0.01])  # the ball is not reached, and is
def test_the_steps(radius: float) -> None:
    make = functools.partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2)
    method, network = Transfer(0.7, radius, adversary_steps=3, adversary_lr=0.1), model()
    assert method.prepare(network, FACTS) is network
    players = make_players(method, network, make)
    other = copy.deepcopy(network)
    adversary, adam = copy.deepcopy(other.classifier), make(other.parameters())
    for step in range(3):
        data = batch(6, 7, 5, seed=step)
        logs = optimizer_step(method, network, players, data, step)
        risk = torch.stack(risks(other, other.classifier, data)).mean()
        adam.zero_grad()
        risk.backward()
        adam.step()
        loss = 0.7 * gap(other, adversary, data)
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(logs["gap"], loss.detach() / 0.7, rtol=1e-9, atol=0)
        torch.testing.assert_close(logs["risk"], risk.detach(), rtol=1e-9, atol=0)
        adversary.load_state_dict(other.classifier.state_dict())
        sgd = torch.optim.SGD(adversary.parameters(), lr=0.1)
        reached = False
        for _ in range(3):
            sgd.zero_grad()
            (-0.7 * gap(other, adversary, data)).backward()
            sgd.step()
            with torch.no_grad():
                pairs = list(
                    zip(adversary.parameters(), other.classifier.parameters(), strict=True)
                )
                distance = math.sqrt(sum((a - h).square().sum().item() for a, h in pairs))
                for a, h in pairs:
                    a.copy_(h + min(1, radius / distance) * (a - h))
            reached |= distance > radius
        assert reached == (radius < 1)
        for ours, alone in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-12)
        for ours, alone in zip(method.adversary.parameters(), adversary.parameters(), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-12)


def test_the_gap_moves_the_featurizer_only() -> None:
    network = model()
    method = Transfer()
    method.prepare(network, FACTS)
    yielded = method.objective(network, batch(6, 7, 5, seed=0), 0)
    next(yielded)
    next(yielded).total.backward()
    assert network.classifier.weight.grad is None
    assert network.featurizer[0].weight.grad.any()


def test_gamma_zero_is_erm_to_the_last_bit() -> None:
    networks = [model(), model()]
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    for method, network in zip((Transfer(0.0), Erm()), networks, strict=True):
        players = make_players(method, method.prepare(network, FACTS), make)
        for step in range(4):
            optimizer_step(method, network, players, batch(6, 7, 5, seed=step), step)
    for ours, erm in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(ours, erm)


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": -1.0}, {"radius": 0.0}, {"adversary_lr": math.inf}, {"adversary_steps": 0}],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Transfer(**wrong)
