"""SAGM's direction written out."""

from __future__ import annotations

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.sagm import Sagm
from tests.unit.trainers.perturbed import case, flat, gradient, shifted


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
