"""V-REx's objective written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.vrex import Vrex


def case(*sizes: int) -> tuple[Model, Batch, list[torch.Tensor]]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    batch = Batch(
        torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3, sizes
    )
    pairs = zip(batch.by_domain(network(batch.x)), batch.by_domain(batch.y), strict=True)
    return network, batch, [F.cross_entropy(z, y) for z, y in pairs]


@pytest.mark.parametrize(("step", "weight"), [(2, 1.0), (3, 50.0)])
def test_colored_mnist_is_the_squared_difference(step: int, weight: float) -> None:
    network, batch, (a, b) = case(6, 7)
    method = Vrex(50.0, convention="colored_mnist", anneal_steps=3, l2=0.1)
    norm = sum(p.square().sum() for p in network.parameters())
    expected = ((a + b) / 2 + 0.1 * norm + weight * (a - b) ** 2) / weight
    found = method.objective(network, batch, step).total
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert method.resets == {}


@pytest.mark.parametrize(("step", "weight"), [(2, 1.0), (3, 50.0)])
def test_domainbed_is_the_population_variance(step: int, weight: float) -> None:
    network, batch, losses = case(6, 7, 5)
    method = Vrex(50.0, convention="domainbed", anneal_steps=3)
    risks = torch.stack(losses)
    expected = risks.mean() + weight * risks.var(unbiased=False)
    found = method.objective(network, batch, step).total
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert method.resets == {3: {}}


def test_colored_mnist_sums_over_pairs_of_domains() -> None:
    network, batch, (a, b, c) = case(6, 7, 5)
    penalty = Vrex(1.0, convention="colored_mnist").objective(network, batch, 0).logs["penalty"]
    expected = (a - b) ** 2 + (a - c) ** 2 + (b - c) ** 2
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"convention": "mine"}, {"anneal_steps": -1}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Vrex(**{"gamma": 1.0, **wrong})
