"""Methods with a discriminator of domains."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.cdann import Cdann
from fishr_exp.trainers.dann import Dann

from .conftest import DomainBed


def share(theirs: Any, ours: Trainer, model: Model) -> None:
    """Copy the discriminator, layer by layer, and the embeddings of classes."""
    del model
    layers = [m for m in ours.discriminator if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    disc = theirs.discriminator
    for layer, source in zip(layers, [disc.input, *disc.hiddens, disc.output], strict=True):
        layer.load_state_dict(source.state_dict())
    if isinstance(ours, Cdann):
        ours.class_embeddings.load_state_dict(theirs.class_embeddings.state_dict())


@pytest.mark.parametrize("name", ["DANN", "CDANN"])
@pytest.mark.parametrize("steps_of_discriminator", [1, 4])
def test_adversary(domainbed: DomainBed, name: str, steps_of_discriminator: int) -> None:
    """Ten updates: both players move at least twice, with the penalty and weight decay."""

    def make() -> Trainer:
        return (Dann if name == "DANN" else Cdann)(
            adversarial_weight=0.7, discriminator_steps=steps_of_discriminator,
            gradient_penalty=0.3, discriminator_lr=2e-3, discriminator_weight_decay=1e-3,
            beta1=0.5, width=8, depth=4,
        )  # fmt: skip

    of_theirs = {"lambda": 0.7, "d_steps_per_g_step": steps_of_discriminator}
    found = domainbed.difference(
        name, make, steps=10, share=share, grad_penalty=0.3, lr=1e-3, lr_g=1e-3, lr_d=2e-3,
        weight_decay=1e-2, weight_decay_g=1e-2, weight_decay_d=1e-3, beta1=0.5, mlp_depth=4,
        **of_theirs,
    )  # fmt: skip
    assert found < 1e-8
