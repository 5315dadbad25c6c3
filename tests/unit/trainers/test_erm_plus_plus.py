"""ERM++ trains the classifier first, and then is ERM with a new optimizer."""

from __future__ import annotations

import functools

import pytest
import torch

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.erm_plus_plus import ErmPlusPlus
from fishr_exp.training.step import make_players, optimizer_step

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def model() -> Model:
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    return Model(featurizer, torch.nn.Linear(4, 3)).double()


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(10, 5, dtype=torch.float64, generator=generator)
    return Batch(x, torch.arange(10) % 3, (6, 4))


def weights(network: Model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_the_first_steps_are_the_classifiers() -> None:
    network, by_hand = model(), model()
    method = ErmPlusPlus(classifier_steps=2, classifier_lr=0.1)
    players = make_players(method, network, ADAM)
    first = torch.optim.Adam(by_hand.classifier.parameters(), lr=0.1)
    then = torch.optim.Adam(by_hand.parameters(), lr=1e-2)
    for step in range(5):
        logs = optimizer_step(method, network, players, batch(step), step)
        optimizer = first if step < 2 else then
        optimizer.zero_grad()
        objective = Erm().objective(by_hand, batch(step), step)
        by_hand.zero_grad()
        objective.total.backward()
        optimizer.step()
        assert torch.equal(logs["risk"], objective.total)
        for left, right in zip(
            network.state_dict().values(), by_hand.state_dict().values(), strict=True
        ):
            assert torch.equal(left, right)  # BatchNorm's statistics, too
        if step == 1:
            assert all(
                torch.equal(p, q)
                for p, q in zip(
                    model().featurizer.parameters(), network.featurizer.parameters(), strict=True
                )
            )


def test_without_first_steps_it_is_erm() -> None:
    networks = [model(), model()]
    methods = [Erm(), ErmPlusPlus(classifier_steps=0)]
    players = [make_players(m, n, ADAM) for m, n in zip(methods, networks, strict=True)]
    assert list(players[1]) == ["model"]
    for step in range(3):
        for m, n, p in zip(methods, networks, players, strict=True):
            optimizer_step(m, n, p, batch(step), step)
    for left, right in zip(*map(weights, networks), strict=True):
        assert torch.equal(left, right)


def test_the_learning_rate_is_the_optimizers_by_default() -> None:
    players = make_players(ErmPlusPlus(), model(), ADAM)
    assert players["classifier"].optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("wrong", [{"classifier_steps": -1}, {"classifier_lr": 0.0}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        ErmPlusPlus(**wrong)
