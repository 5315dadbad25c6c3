"""SAGM's direction written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.sagm import Sagm


def case(*sizes: int) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
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


@pytest.mark.parametrize(("rho", "alpha"), [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2)])
def test_the_direction(rho: float, alpha: float) -> None:
    network, batch = case(6, 7, 5)
    risk, g = gradient(network, batch)
    perturbed, second = gradient(shifted(network, rho * g / g.norm() - alpha * g), batch)
    found = Sagm(rho, alpha).objective(network, batch, 0)
    torch.testing.assert_close(flat(found.gradients), (g + second) / 2, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.logs["perturbed_risk"], perturbed)
    torch.testing.assert_close(found.total, (risk + perturbed) / 2)


def test_without_perturbation_it_is_erm() -> None:
    network, batch = case(6, 7, 5)
    found = Sagm(0.0, 0.0).objective(network, batch, 0)
    assert found.gradients is None
    torch.testing.assert_close(found.total.detach(), gradient(network, batch)[0])


@pytest.mark.parametrize("wrong", [{"rho": -0.1}, {"alpha": -0.1}, {"alpha": float("inf")}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Sagm(**wrong)
