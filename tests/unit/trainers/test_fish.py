"""Fish's step written out, with the optimizer's own updates."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.fish import Fish
from fishr_exp.training.step import make_players, optimizer_step


def model() -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    return Model(featurizer, nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return Batch(x, torch.randint(3, (n,), generator=generator), sizes)


@pytest.mark.parametrize("meta_lr", [0.3, 1.0])
def test_a_step_is_part_of_the_way_of_d_updates(meta_lr: float) -> None:
    make = functools.partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2)
    method, network = Fish(meta_lr), model()
    players = make_players(method, network, make)
    other = copy.deepcopy(network)
    adam = make(other.parameters())
    for step in range(3):
        data = batch(6, 7, 5, seed=step)
        logs = optimizer_step(method, network, players, data, step)
        before, risks = copy.deepcopy(other.state_dict()), []
        for x, y in zip(data.by_domain(data.x), data.by_domain(data.y), strict=True):
            risk = F.cross_entropy(other(x), y)
            adam.zero_grad()
            risk.backward()
            adam.step()
            risks.append(risk.detach())
        after = other.state_dict()
        for name, value in after.items():
            if value.is_floating_point():
                value.copy_((1 - meta_lr) * before[name] + meta_lr * value)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-10, atol=1e-14)
        assert network.featurizer[1].num_batches_tracked == 3 * (step + 1)
        torch.testing.assert_close(logs["risk"], torch.stack(risks).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("meta_lr", [0.0, 1.5, -1.0])
def test_refuses(meta_lr: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.meta_lr=.*: must be in \(0, 1\]"):
        Fish(meta_lr)
