"""GSAM's direction written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.gsam import Gsam
from fishr_exp.trainers.sam import Sam


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


def test_the_direction() -> None:
    network, batch = case(6, 7, 5)
    _, g = gradient(network, batch)
    perturbed, second = gradient(shifted(network, 0.3 * g / g.norm()), batch)
    unit = second / second.norm()
    orthogonal = g - (g @ unit) * unit
    assert abs(orthogonal @ second) < 1e-12 < orthogonal.norm()
    found = Gsam(0.3, 0.4).objective(network, batch, 0)
    expected = second - 0.4 * orthogonal
    torch.testing.assert_close(flat(found.gradients), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.total, perturbed)


def test_without_alpha_it_is_sam() -> None:
    network, batch = case(6, 7, 5)
    ours, sam = (m.objective(network, batch, 0).gradients for m in (Gsam(0.3, 0.0), Sam(0.3)))
    assert torch.equal(flat(ours), flat(sam))


@pytest.mark.parametrize("wrong", [{"rho": -0.1}, {"alpha": -0.1}, {"alpha": float("inf")}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Gsam(**wrong)
