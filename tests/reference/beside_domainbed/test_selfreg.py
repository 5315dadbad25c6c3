"""SelfReg, with the same draws on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers import selfreg

from .conftest import DomainBed


def sequential(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Draw both partners as DomainBed does: class by class, one after the other."""
    found = torch.empty_like(labels), torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        for partner in found:
            partner[members] = members[torch.randperm(len(members))]
    return found


@pytest.mark.parametrize("convention", ["intended", "published"])
def test_selfreg(domainbed: DomainBed, convention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beta = torch.distributions.Beta(0.5, 0.5)
    monkeypatch.setattr(np.random, "beta", lambda *_: beta.sample().item())
    monkeypatch.setattr(torch, "sort", lambda labels: labels.sort(stable=True))
    drawn: list[Tensor] = []

    def partners(y: Tensor) -> Tensor:
        drawn.extend(reversed(sequential(y)) if not drawn else ())
        return drawn.pop()

    monkeypatch.setattr(selfreg, "partners", partners)

    def share(theirs: Any, ours: Trainer, model: Model) -> None:
        del model
        own = {k: v for k, v in theirs.cdpl.state_dict().items()
               if k not in ("0.bias", "3.bias", "6.bias")}  # BatchNorm takes them away  # fmt: skip
        ours.projector.load_state_dict(own)  # type: ignore[union-attr, operator]
        if convention == "intended":
            theirs.optimizer.add_param_group({"params": theirs.cdpl.parameters()})

    found = domainbed.difference(
        "SelfReg", lambda: selfreg.SelfReg(convention=convention), n=12,
        before_step=torch.manual_seed, share=share, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-8
