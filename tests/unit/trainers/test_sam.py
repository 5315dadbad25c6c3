"""SAM's direction written out."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.sam import Sam
from fishr_exp.training.step import make_players, optimizer_step


def case(*sizes: int) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    network = Model(featurizer, nn.Linear(4, 3)).double()
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return network, Batch(x, y, sizes)


def gradient(network: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean risk of the domains, and its gradient as one long vector."""
    parts = zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True)
    risk = torch.stack([F.cross_entropy(network(x), y) for x, y in parts]).mean()
    found = torch.autograd.grad(risk, [*network.parameters()])
    return risk.detach(), torch.cat([g.flatten() for g in found])


def shifted(network: Model, step: torch.Tensor) -> Model:
    other = copy.deepcopy(network)
    weights = nn.utils.parameters_to_vector(other.parameters())
    nn.utils.vector_to_parameters(weights + step, other.parameters())
    return other


def flat(gradients: object) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients])  # type: ignore[attr-defined]


def test_the_direction() -> None:
    network, batch = case(6, 7, 5)
    network.eval()
    risk, g = gradient(network, batch)
    perturbed, expected = gradient(shifted(network, 0.3 * g / g.norm()), batch)
    before = copy.deepcopy(network.state_dict())
    found = Sam(0.3).objective(network, batch, 0)
    torch.testing.assert_close(flat(found.gradients), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.logs["risk"], risk)
    torch.testing.assert_close(found.logs["objective"], perturbed)
    torch.testing.assert_close(found.total, perturbed)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_statistics_of_batchnorm_are_of_the_weights_themselves() -> None:
    networks = [case(6, 7)[0] for _ in range(2)]
    batch = case(6, 7)[1]
    Sam(0.3).objective(networks[0], batch, 0)
    networks[1](batch.x)
    for ours, once in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(ours, once)


def test_a_gradient_of_zero_perturbs_nothing() -> None:
    network, batch = case(6, 6)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)  # six samples of each domain: classes are balanced
    found = Sam(0.3).objective(network, batch, 0)
    assert torch.isfinite(flat(found.gradients)).all()
    assert found.logs["risk"] == found.logs["perturbed_risk"]


def test_radius_zero_is_erm_to_the_last_bit() -> None:
    networks = [case(6, 7)[0] for _ in range(2)]
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    for method, network in zip((Sam(0.0), Erm()), networks, strict=True):
        players = make_players(method, network, make)
        for step in range(4):
            optimizer_step(method, network, players, case(6 + step, 7)[1], step)
    for ours, erm in zip(*(n.state_dict().values() for n in networks), strict=True):
        assert torch.equal(ours, erm)


@pytest.mark.parametrize("rho", [-0.1, float("inf"), float("nan")])
def test_refuses(rho: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.rho=.*: must be finite and >= 0"):
        Sam(rho)
