"""SagNet, with the same draws on both sides."""

from __future__ import annotations

from typing import Any

import torch

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.sagnet import SagNet

from .conftest import DomainBed


def share(theirs: Any, ours: Trainer, model: Model) -> None:
    """Copy the style head."""
    del model
    assert isinstance(ours, SagNet)
    ours.style.load_state_dict(theirs.network_s.state_dict())


def test_sagnet(domainbed: DomainBed) -> None:
    found = domainbed.difference(
        "SagNet", lambda: SagNet(0.7), before_step=torch.manual_seed, share=share,
        sag_w_adv=0.7, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-8
