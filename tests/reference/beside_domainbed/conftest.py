"""DomainBed's own updates beside ours: the same weights, the same minibatches, float64.

`DOMAINBED=DIR` names a checkout of facebookresearch/DomainBed; without it these tests are skipped.
Adam divides by the size of a gradient, so that a rounding of 1e-17 may grow to 1e-9 in a few steps:
weights agree to 1e-8.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fishr_exp.core._torchvision import torchvision  # noqa: F401 - before DomainBed imports it
from fishr_exp.core.contracts import Batch, Facts, Minibatch, Model, Trainer
from fishr_exp.training.step import make_players, optimizer_step

CLASSES, INPUTS = 3, 5


def minibatches(domains: int, n: int, seed: int, shape: tuple[int, ...]) -> list[Minibatch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Minibatch(
            torch.randn(n, *shape, generator=generator, dtype=torch.float64) + 0.3 * domain,
            torch.randint(CLASSES, (n,), generator=generator),
        )
        for domain in range(domains)
    ]


class DomainBed:
    """Its algorithms, and a comparison of updates."""

    def __init__(self, path: str) -> None:
        if importlib.util.find_spec("timm") is None:  # imported, and not used here
            sys.modules["timm"] = types.ModuleType("timm")
        sys.path.insert(0, path)
        self.algorithms: Any = importlib.import_module("domainbed.algorithms")
        self.registry: Any = importlib.import_module("domainbed.hparams_registry")

    def make(
        self, name: str, domains: int, hparams: dict[str, Any], shape: tuple[int, ...] = (INPUTS,)
    ) -> Any:
        """Build an algorithm with a small MLP as its featurizer, in float64."""
        values = self.registry.default_hparams(name, "PACS")
        values |= {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0, "lr": 1e-3} | hparams
        torch.manual_seed(0)
        made = getattr(self.algorithms, name)(shape, CLASSES, domains, values).double()
        if name == "SagNet":
            made.featurizer, made.classifier = made.network_f, made.network_c
        elif not hasattr(made, "featurizer"):  # Fish has both in one network
            made.featurizer, made.classifier = made.network.net
        return made

    def difference(
        self,
        name: str,
        make: Callable[[], Trainer],
        *,
        domains: int = 3,
        n: int = 8,
        steps: int = 4,
        shape: tuple[int, ...] = (INPUTS,),
        before_step: Callable[[int], None] = lambda step: None,
        share: Callable[[Any, Trainer, Model], None] = lambda theirs, ours, model: None,
        **hparams: Any,
    ) -> float:
        """Return the largest difference of a weight after some updates of both.

        Args:
            name: DomainBed's algorithm.
            make: Makes our trainer.
            domains: Number of training domains.
            n: Samples of each.
            steps: Number of updates.
            shape: Of a sample.
            before_step: Called before the update of each side; seeds the draws, for one.
            share: Called with their algorithm, our trainer and the model that it prepared: copies
                the weights of networks that a method has beside the featurizer and classifier.
            hparams: In place of DomainBed's defaults.
        """
        theirs = self.make(name, domains, hparams, shape)
        model = Model(copy.deepcopy(theirs.featurizer), copy.deepcopy(theirs.classifier))
        ours = make()
        names = tuple("abcdefgh"[:domains])
        features = theirs.featurizer.n_outputs  # a classifier may read more
        model = ours.prepare(model, Facts(names, CLASSES, features, steps, shape)).double()
        ours.double()
        share(theirs, ours, model)
        values = theirs.hparams
        adam = functools.partial(
            torch.optim.Adam, lr=values["lr"], weight_decay=values["weight_decay"]
        )
        players = make_players(ours, model, adam)
        for step in range(steps):
            before_step(step)
            theirs.update([(m.x, m.y) for m in minibatches(domains, n, step, shape)])
            before_step(step)
            if (overrides := ours.resets.get(step)) is not None:
                players = make_players(ours, model, adam, overrides)
            batch = Batch.join(minibatches(domains, n, step, shape))
            optimizer_step(ours, model, players, batch, step)
        featurizer = getattr(model.featurizer, "body", model.featurizer)  # MTL and ARM wrap it
        pairs = [
            *zip(theirs.featurizer.parameters(), featurizer.parameters(), strict=True),
            *zip(theirs.classifier.parameters(), model.classifier.parameters(), strict=True),
        ]
        return max((left - right).abs().max().item() for left, right in pairs)


@pytest.fixture(scope="session")
def domainbed() -> DomainBed:
    path = os.environ.get("DOMAINBED")
    if not path:
        pytest.skip("DOMAINBED=DIR does not name a checkout of DomainBed")
    return DomainBed(path)
