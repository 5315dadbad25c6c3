"""GSAM's direction written out."""

from __future__ import annotations

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.gsam import Gsam
from fishr_exp.trainers.sam import Sam
from tests.unit.trainers.perturbed import case, flat, gradient, shifted


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
