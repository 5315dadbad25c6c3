"""SagNet's three objectives written out, sample by sample, with the draws known."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.sagnet import SagNet
from fishr_exp.training.step import make_players, optimizer_step

SIZES = (6, 4)


def case(**changes) -> tuple[SagNet, Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    method = SagNet(**changes)
    assert method.prepare(network, Facts(("a", "b"), 3, 4, 10, (5,))) is network
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.arange(10) % 3
    return method.double(), network, Batch(x, y, SIZES)


def mean(losses: list[torch.Tensor]) -> torch.Tensor:
    """Over the domains of the means over their samples."""
    return torch.stack([torch.stack(losses[:6]).mean(), torch.stack(losses[6:]).mean()]).mean()


def by_hand(method: SagNet, network: Model, batch: Batch, turn: int) -> torch.Tensor:
    share, order = torch.rand(10, 1), torch.randperm(10)
    f = network.featurizer(batch.x)
    losses = []
    for i, y in enumerate(batch.y):
        own, other = f[i], f[order[i]]
        if turn == 0:
            a, b = share[i].double(), (1 - share[i]).double()  # drawn in float32
            m, v = a * own.mean() + b * other.mean(), a * own.var() + b * other.var()
            content = (own - own.mean()) / (own.var() + 1e-5).sqrt()
            logits = network.classifier(content * (v + 1e-5).sqrt() + m)
        else:
            content = ((other - other.mean()) / (other.var() + 1e-5).sqrt()).detach()
            logits = method.style(content * (own.var() + 1e-5).sqrt() + own.mean())
        if turn == 2:
            losses.append(-logits.softmax(0).log().mean())
        else:
            losses.append(F.cross_entropy(logits[None], y[None]))
    return mean(losses) * (method.adversarial_weight if turn == 2 else 1)


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_the_objectives(turn: int) -> None:
    method, network, batch = case(adversarial_weight=0.7)
    torch.manual_seed(turn)
    given = method.objective(network, batch, 0)
    for _ in range(turn):
        next(given)
        torch.manual_seed(turn)
    found = next(given)
    torch.manual_seed(turn)
    expected = by_hand(method, network, batch, turn)
    player = [("featurizer", "classifier"), "style", "featurizer"][turn]
    assert found.player == player
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = list([network, method.style, network.featurizer][turn].parameters())
    ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
    for left, right in zip(ours, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-14)


def test_one_optimizer_of_the_featurizer_serves_two_updates() -> None:
    method, network, batch = case()
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    players = make_players(method, network, adam)
    optimizer_step(method, network, players, batch, 0)
    counts = {
        name: {int(state["step"]) for state in player.optimizer.state.values()}
        for name, player in players.items()
    }
    assert counts == {"featurizer": {2}, "classifier": {1}, "style": {1}}


def test_predictions_are_not_mixed() -> None:
    method, network, batch = case()
    before = copy.deepcopy(network)
    list(method.objective(network, batch, 0))
    assert torch.equal(network(batch.x), before(batch.x))


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_refuses_a_weight(wrong: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.adversarial_weight="):
        SagNet(wrong)


def test_refuses_a_single_feature() -> None:
    with pytest.raises(ConfigError, match="needs a model with 2 features"):
        SagNet().prepare(Model(torch.nn.Linear(5, 1), torch.nn.Linear(1, 3)), Facts((), 3, 1, 10))
