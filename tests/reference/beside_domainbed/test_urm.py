"""URM, with the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.urm import Urm

from .conftest import DomainBed


def share(theirs: Any, ours: Trainer, model: Model) -> None:
    """Copy the discriminator; their copied featurizer applies the activation already."""
    model.featurizer[0].activation = nn.Identity()  # type: ignore[index]
    pairs = zip(ours.discriminator.parameters(), theirs.discriminator.parameters(), strict=True)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for own, source in pairs:
            own.copy_(source)


@pytest.mark.parametrize(("output", "layers"), [("tanh", 1), ("relu", 3)])
def test_urm(domainbed: DomainBed, output: str, layers: int) -> None:
    found = domainbed.difference(
        "URM", lambda: Urm(0.3, output, layers, discriminator_lr=2e-3),
        share=share, before_step=torch.manual_seed, urm_adv_lambda=0.3, urm_generator_output=output,
        urm_discriminator_hidden_layers=layers, urm_discriminator_lr=2e-3, weight_decay=1e-2,
    )  # fmt: skip
    assert found < 1e-12
