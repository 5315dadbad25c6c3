"""Transfer, with DomainBed's default, `gda` off."""

from __future__ import annotations

import pytest

from fishr_exp.trainers.transfer import Transfer

from .conftest import DomainBed


@pytest.mark.parametrize("radius", [2.0, 1e-4])  # the ball is not reached, and is
def test_transfer(domainbed: DomainBed, radius: float) -> None:
    found = domainbed.difference(
        "Transfer", lambda: Transfer(0.7, radius, adversary_steps=3, adversary_lr=0.01),
        t_lambda=0.7, delta=radius, d_steps_per_g=3, lr_d=0.01, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-12
