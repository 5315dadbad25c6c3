"""MTL's published objective; and its embeddings, once DomainBed's noise is taken away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.mtl import Mtl

from .conftest import DomainBed


def share(theirs: Any, ours: Trainer, model: Model) -> None:
    """Copy the classifier, which has twice as many inputs as there are features."""
    del ours
    model.classifier.load_state_dict(theirs.classifier.state_dict())


@pytest.mark.parametrize("noise", [True, False])
def test_mtl(domainbed: DomainBed, noise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Trainer] = []

    def make() -> Mtl:
        made.append(Mtl(0.9, convention="published"))
        if not noise:  # from here on, in DomainBed and here: networks are made already
            monkeypatch.setattr(torch.Tensor, "normal_", lambda embedding: embedding)
        return made[0]  # type: ignore[return-value]

    found = domainbed.difference(
        "MTL", make, before_step=torch.manual_seed, share=share, mtl_ema=0.9, weight_decay=1e-2
    )
    assert found < 1e-8
