"""ARM on images, with DomainBed's network for MNIST."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fishr_exp.core.contracts import Model, Trainer
from fishr_exp.trainers.arm import Arm

from .conftest import DomainBed


class Images(DomainBed):
    """DomainBed, whose ARM gets its context network trained where that is wanted."""

    train_context = False

    def make(self, *args: Any, **kwargs: Any) -> Any:
        theirs = super().make(*args, **kwargs)
        if self.train_context:
            theirs.optimizer.add_param_group({"params": theirs.context_net.parameters()})
        self.wide = theirs.featurizer.conv1  # of two channels
        # What a featurizer is before ARM widens it.
        theirs.featurizer.conv1 = nn.Conv2d(1, 64, 3, 1, padding=1).double()
        return theirs

    def share(self, theirs: Any, ours: Trainer, model: Model) -> None:
        """Copy the context network, and the first convolution of two channels."""
        del ours
        theirs.featurizer.conv1 = self.wide
        body, context = model.featurizer.body, model.featurizer.context
        body.load_state_dict(theirs.featurizer.state_dict())  # type: ignore[union-attr, operator]
        own = theirs.context_net.context_net.state_dict()
        biases = ("0.bias", "3.bias")  # BatchNorm takes them away
        context.load_state_dict({k: v for k, v in own.items() if k not in biases})  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("convention", ["intended", "published"])
def test_arm(domainbed: DomainBed, convention: str) -> None:
    bed = Images.__new__(Images)
    bed.algorithms, bed.registry = domainbed.algorithms, domainbed.registry
    bed.train_context = convention == "intended"
    found = bed.difference(
        "ARM", lambda: Arm(convention), n=4, steps=3, shape=(1, 28, 28), share=bed.share,
        batch_size=4,
    )  # fmt: skip
    assert found < 1e-8
