"""Penalties on one forward pass."""

from __future__ import annotations

from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.vrex import Vrex

from .conftest import DomainBed


def test_erm(domainbed: DomainBed) -> None:
    assert domainbed.difference("ERM", Erm) < 1e-12


def test_vrex(domainbed: DomainBed) -> None:
    def make() -> Vrex:
        return Vrex(10.0, anneal_steps=2)

    found = domainbed.difference("VREx", make, vrex_lambda=10.0, vrex_penalty_anneal_iters=2)
    assert found < 1e-8


def test_irm(domainbed: DomainBed) -> None:
    def make() -> Irm:
        return Irm(100.0, anneal_steps=2)

    found = domainbed.difference("IRM", make, irm_lambda=100.0, irm_penalty_anneal_iters=2)
    assert found < 1e-8
