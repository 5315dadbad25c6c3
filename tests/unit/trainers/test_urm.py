"""URM's step written out."""

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
from fishr_exp.trainers.urm import Urm
from fishr_exp.training.step import make_players, optimizer_step

FACTS = Facts(("a", "b", "c"), 3, 4, 100)
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Linear(5, 4), nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    return Batch(x, torch.randint(3, (n,), generator=generator), sizes)


def mean(values: torch.Tensor, data: Batch) -> torch.Tensor:
    return torch.stack([part.mean() for part in data.by_domain(values)]).mean()


@pytest.mark.parametrize("output", ["tanh", "relu", "sigmoid"])
@pytest.mark.parametrize(("layers", "lr"), [(1, None), (3, 5e-3)])
def test_the_steps(output: str, layers: int, lr: float | None) -> None:
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    method = Urm(0.3, output, discriminator_layers=layers, discriminator_lr=lr)
    network = method.prepare(model(), FACTS).double()
    method.double()
    players = make_players(method, network, make)
    other, discriminator = model(), copy.deepcopy(method.discriminator)
    linear = [m for m in discriminator if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (4, 100), *[(100, 100)] * layers, (100, 1),
    ]  # fmt: skip
    assert sum(isinstance(m, nn.LeakyReLU) for m in discriminator) == layers + 1
    of_network = make(other.parameters())
    of_discriminator = make(discriminator.parameters(), lr=lr or 1e-2)
    for step in range(3):
        data = batch(6, 7, 5, seed=step)
        torch.manual_seed(step)
        logs = optimizer_step(method, network, players, data, step)
        features = ACTIVATIONS[output](other.featurizer(data.x))
        risk = mean(F.cross_entropy(other.classifier(features), data.y, reduction="none"), data)
        fooled = mean(-F.logsigmoid(discriminator(features)).squeeze(1), data)
        of_network.zero_grad()
        (risk + 0.3 * fooled).backward()
        of_network.step()
        torch.manual_seed(step)
        noise = torch.rand(features.shape, dtype=torch.float64)
        if output == "tanh":
            noise = 2 * noise - 1
        seen = discriminator(features.detach()).squeeze(1)
        loss = -F.logsigmoid(discriminator(noise)).mean() - 0.3 * mean(F.logsigmoid(-seen), data)
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()
        torch.testing.assert_close(logs["risk"], risk.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(logs["discriminator_loss"], loss.detach(), rtol=1e-9, atol=0)
        ours = [*network.parameters(), *method.discriminator.parameters()]
        theirs = [*other.parameters(), *discriminator.parameters()]
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-11)
    x = data.x
    torch.testing.assert_close(
        network(x), other.classifier(ACTIVATIONS[output](other.featurizer(x))), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversarial_weight": -1.0},
        {"output": "identity"},
        {"discriminator_layers": -1},
        {"discriminator_lr": 0.0},
        {"discriminator_lr": math.inf},
    ],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Urm(**wrong)
