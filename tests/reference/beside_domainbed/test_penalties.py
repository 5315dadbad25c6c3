"""Methods on one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fishr_exp.core.contracts import Trainer
from fishr_exp.trainers.cad import Cad
from fishr_exp.trainers.causirl_coral import CausirlCoral
from fishr_exp.trainers.causirl_mmd import CausirlMmd
from fishr_exp.trainers.cond_cad import CondCad
from fishr_exp.trainers.coral import Coral
from fishr_exp.trainers.eqrm import Eqrm
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.group_dro import GroupDro
from fishr_exp.trainers.ib_erm import IbErm
from fishr_exp.trainers.ib_irm import IbIrm
from fishr_exp.trainers.iga import Iga
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.mixup import Mixup
from fishr_exp.trainers.mmd import Mmd
from fishr_exp.trainers.rdm import Rdm
from fishr_exp.trainers.rsc import Rsc
from fishr_exp.trainers.sd import Sd
from fishr_exp.trainers.vrex import Vrex

from .conftest import DomainBed

CASES: dict[str, tuple[Callable[[], Trainer], dict[str, Any]]] = {
    "ERM": (Erm, {}),
    "VREx": (
        lambda: Vrex(10.0, anneal_steps=2),
        {"vrex_lambda": 10.0, "vrex_penalty_anneal_iters": 2},
    ),
    "IRM": (
        lambda: Irm(100.0, anneal_steps=2),
        {"irm_lambda": 100.0, "irm_penalty_anneal_iters": 2},
    ),
    "CORAL": (lambda: Coral(3.0), {"mmd_gamma": 3.0}),
    "MMD": (lambda: Mmd(3.0), {"mmd_gamma": 3.0}),
    "SD": (lambda: Sd(0.3), {"sd_reg": 0.3}),
    "IGA": (lambda: Iga(50.0), {"penalty": 50.0}),
    "IB_ERM": (
        lambda: IbErm(5.0, anneal_steps=2),
        {"ib_lambda": 5.0, "ib_penalty_anneal_iters": 2},
    ),
    "IB_IRM": (
        lambda: IbIrm(7.0, 1, 5.0, 2),
        {
            "irm_lambda": 7.0,
            "irm_penalty_anneal_iters": 1,
            "ib_lambda": 5.0,
            "ib_penalty_anneal_iters": 2,
        },
    ),
    "GroupDRO": (lambda: GroupDro(0.5), {"groupdro_eta": 0.5}),
    "EQRM": (
        lambda: Eqrm(0.75, 2, 1e-4),
        {"eqrm_quantile": 0.75, "eqrm_burnin_iters": 2, "eqrm_lr": 1e-4},
    ),
    "RSC": (
        lambda: Rsc(0.4, 0.3),
        {"rsc_f_drop_factor": 0.4, "rsc_b_drop_factor": 0.3},
    ),
    "RDM": (
        lambda: Rdm(5.0, 0.2, 2, 2e-4),
        {
            "rdm_lambda": 5.0,
            "variance_weight": 0.2,
            "rdm_penalty_anneal_iters": 2,
            "rdm_lr": 2e-4,
        },
    ),
    "CAD": (lambda: Cad(0.5, 0.1), {"lmbda": 0.5, "temperature": 0.1}),
    "CondCAD": (lambda: CondCad(0.5, 0.1), {"lmbda": 0.5, "temperature": 0.1}),
}


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DomainBed make its buffers of risks in float64, on the CPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_updates_agree(name: str, domainbed: DomainBed, monkeypatch: pytest.MonkeyPatch) -> None:
    make, hparams = CASES[name]
    in_float64(monkeypatch)
    try:
        assert domainbed.difference(name, make, **hparams) < 1e-8
    finally:
        torch.set_default_dtype(torch.float32)


def test_mixup(domainbed: DomainBed, monkeypatch: pytest.MonkeyPatch) -> None:
    def beta(a: float, b: float) -> float:
        return torch.distributions.Beta(a, b).sample().item()

    monkeypatch.setattr(np.random, "beta", beta)
    found = domainbed.difference(
        "Mixup", lambda: Mixup(0.7), before_step=torch.manual_seed, mixup_alpha=0.7
    )
    assert found < 1e-8


@pytest.mark.parametrize(
    ("name", "kind"), [("CausIRL_CORAL", CausirlCoral), ("CausIRL_MMD", CausirlMmd)]
)
def test_causirl(
    name: str, kind: type[CausirlCoral], domainbed: DomainBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def randint(low: int, high: int) -> int:
        assert low == 0
        return int(torch.randint(high, ()))

    monkeypatch.setattr(np.random, "randint", randint)
    found = domainbed.difference(
        name, lambda: kind(3.0), before_step=torch.manual_seed, mmd_gamma=3.0
    )
    assert found < 1e-8
