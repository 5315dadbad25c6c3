"""ERM++'s two phases; DomainBed's linear_steps are one fewer than the updates that they make."""

from __future__ import annotations

from fishr_exp.trainers.erm_plus_plus import ErmPlusPlus

from .conftest import DomainBed


def test_erm_plus_plus(domainbed: DomainBed) -> None:
    found = domainbed.difference(
        "ERMPlusPlus", lambda: ErmPlusPlus(classifier_steps=3, classifier_lr=2e-3), steps=6,
        linear_steps=2, linear_lr=2e-3, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-8
