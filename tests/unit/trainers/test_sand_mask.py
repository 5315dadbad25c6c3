"""SAND-mask's direction written out, coordinate by coordinate."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.sand_mask import SandMask


def case(*sizes: int) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return network, Batch(x, y, sizes)


def by_hand(network: Model, batch: Batch, tau: float, k: float) -> list[torch.Tensor]:
    of_domains = []
    for x, y in zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True):
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        of_domains.append([p.grad.flatten().tolist() for p in network.parameters()])
    directions = []
    for number, parameter in enumerate(network.parameters()):
        weights, means = [], []
        for i in range(parameter.numel()):
            values = [gradients[number][i] for gradients in of_domains]
            agreement = abs(sum((v > 0) - (v < 0) for v in values)) / len(values)
            steepness = k / statistics.variance(values)
            weights.append(max(0.0, math.tanh(steepness * (agreement - tau))))
            means.append(statistics.fmean(values))
        scale = 1e-10 + statistics.fmean(weights)
        masked = [w * g / scale for w, g in zip(weights, means, strict=True)]
        directions.append(torch.tensor(masked, dtype=torch.float64).view_as(parameter))
    return directions


@pytest.mark.parametrize(
    ("sizes", "tau", "k"),
    [((6, 7), 0.5, 10.0), ((6, 7, 5), 0.5, 1e-3), ((6, 7, 5), 0.0, 1e-2), ((4, 4, 4, 4), 0.9, 0.1)],
)
def test_the_direction(sizes: tuple[int, ...], tau: float, k: float) -> None:
    network, batch = case(*sizes)
    expected = by_hand(network, batch, tau, k)
    found = SandMask(tau, k).objective(network, batch, 0)
    assert found.gradients is not None
    for ours, theirs in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
        assert ours.any()
    assert 0 < found.logs["kept"] < 1


def test_gradients_that_are_equal_have_full_weight_and_dead_ones_none() -> None:
    """Their variance is 0."""
    gradients = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    assert SandMask(0.5).mask(gradients).tolist() == [1, 0, 0]
    assert SandMask(0.0).mask(gradients).tolist() == [1, 0, 0]


def test_tau_1_trains_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.tau=1.0: .*nothing is trained; choose"):
        SandMask(1.0)


@pytest.mark.parametrize("wrong", [{"tau": -0.1}, {"tau": 1.5}, {"k": 0.0}, {"k": math.inf}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        SandMask(**wrong)
