"""Methods whose direction is no gradient of a scalar, or that move weights themselves."""

from __future__ import annotations

import pytest
import torch

from fishr_exp.core.contracts import Trainer
from fishr_exp.trainers.and_mask import AndMask
from fishr_exp.trainers.fish import Fish
from fishr_exp.trainers.mldg import Mldg
from fishr_exp.trainers.sand_mask import SandMask

from .conftest import DomainBed


@pytest.mark.parametrize("domains", [2, 3, 5])
@pytest.mark.parametrize("tau", [1.0, 0.55])
def test_and_mask(domainbed: DomainBed, domains: int, tau: float) -> None:
    found = domainbed.difference(
        "ANDMask", lambda: AndMask(tau), domains=domains, tau=tau, weight_decay=1e-2
    )
    assert found < 1e-8


@pytest.mark.parametrize(("tau", "k"), [(0.5, 10.0), (0.2, 1e-3)])
def test_sand_mask(domainbed: DomainBed, tau: float, k: float) -> None:
    found = domainbed.difference(
        "SANDMask", lambda: SandMask(tau, k), tau=tau, k=k, weight_decay=1e-2
    )
    assert found < 1e-12


@pytest.mark.parametrize(
    ("convention", "domains", "n_meta_test"),
    [
        ("domainbed_main", 3, 2),
        ("domainbed_main", 3, 1),
        ("domainbed_main", 5, 2),
        ("paper_2022", 4, 2),
        ("paper_2022", 2, 2),
    ],
)
def test_mldg(
    domainbed: DomainBed,
    monkeypatch: pytest.MonkeyPatch,
    convention: str,
    domains: int,
    n_meta_test: int,
) -> None:
    """Both draw the order of the domains from torch's stream."""
    if convention == "paper_2022":  # main has the pairs of 2020 for Mixup

        def ring(minibatches: list, n_meta_test: int) -> list:
            del n_meta_test
            return domainbed.algorithms.random_pairs_of_minibatches(minibatches)

        monkeypatch.setattr(domainbed.algorithms, "split_meta_train_test", ring)

    def make() -> Trainer:
        return Mldg(0.7, convention, n_meta_test, inner_lr=1e-3, inner_weight_decay=1e-2)

    found = domainbed.difference(
        "MLDG", make, domains=domains, before_step=torch.manual_seed,
        mldg_beta=0.7, n_meta_test=n_meta_test, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-12


@pytest.mark.parametrize("meta_lr", [0.5, 0.05])
def test_fish(domainbed: DomainBed, meta_lr: float) -> None:
    torch.set_default_dtype(torch.float64)  # of the copy that theirs makes at each step
    try:
        found = domainbed.difference(
            "Fish", lambda: Fish(meta_lr), meta_lr=meta_lr, weight_decay=1e-2
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert found < 1e-12
