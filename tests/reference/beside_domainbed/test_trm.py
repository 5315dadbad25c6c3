"""TRM, which runs on CUDA only in DomainBed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.trm import Trm

from .conftest import DomainBed


def share(theirs: Any, ours: Trainer, model: Model) -> None:
    """Copy the heads, which DomainBed's own `double` does not reach."""
    del model
    theirs.alpha = theirs.alpha.double()
    for source, head in zip(theirs.clist, ours.heads, strict=False):  # type: ignore[arg-type]
        head.load_state_dict(source.double().state_dict())


def test_trm(domainbed: DomainBed, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (nn.Module, torch.Tensor):
        monkeypatch.setattr(kind, "cuda", lambda this, *_: this)
    found = domainbed.difference(
        "TRM",
        lambda: Trm(cosine_weight=0.3, eta=0.5, anneal_steps=2, convention="published"),
        share=share, steps=6, cos_lambda=0.3, groupdro_eta=0.5, iters=2, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-8
