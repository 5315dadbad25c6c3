"""SAM's direction written out."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.sam import Sam
from fishr_exp.training.step import make_players, optimizer_step
from tests.unit.trainers.perturbed import case, flat, gradient, shifted


def test_the_direction() -> None:
    network, batch = case(6, 7, 5, normalized=True)
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
    networks = [case(6, 7, normalized=True)[0] for _ in range(2)]
    batch = case(6, 7, normalized=True)[1]
    Sam(0.3).objective(networks[0], batch, 0)
    networks[1](batch.x)
    for ours, once in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(ours, once)


def test_a_gradient_of_zero_perturbs_nothing() -> None:
    network, batch = case(6, 6, normalized=True)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)  # six samples of each domain: classes are balanced
    found = Sam(0.3).objective(network, batch, 0)
    assert torch.isfinite(flat(found.gradients)).all()
    assert found.logs["risk"] == found.logs["perturbed_risk"]


def test_radius_zero_is_erm_to_the_last_bit() -> None:
    networks = [case(6, 7, normalized=True)[0] for _ in range(2)]
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    for method, network in zip((Sam(0.0), Erm()), networks, strict=True):
        players = make_players(method, network, make)
        for step in range(4):
            optimizer_step(method, network, players, case(6 + step, 7, normalized=True)[1], step)
    for ours, erm in zip(*(n.state_dict().values() for n in networks), strict=True):
        assert torch.equal(ours, erm)


@pytest.mark.parametrize("rho", [-0.1, float("inf"), float("nan")])
def test_refuses(rho: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.rho=.*: must be finite and not negative"):
        Sam(rho)
