"""Linear probing against the formula by hand, and what stays fixed."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Facts, Minibatch, Model
from fishr_exp.trainers.linear_probe import LinearProbe
from fishr_exp.training.step import make_players, optimizer_step

FACTS = Facts(("a", "b"), 3, 4, 10)


def model() -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    return Model(featurizer, nn.Linear(4, 3)).double()


def batch() -> Batch:
    torch.manual_seed(1)
    return Batch.join(
        [Minibatch(torch.randn(n, 6).double(), torch.randint(3, (n,))) for n in (5, 8)]
    )


def test_steps_by_hand() -> None:
    """Gradient steps on softmax regression, with features of the network as it is evaluated."""
    method, samples = LinearProbe(), batch()
    network = method.prepare(model(), FACTS)
    network.train()
    method.train()
    players = make_players(method, network, functools.partial(torch.optim.SGD, lr=0.1))
    start = copy.deepcopy(network.featurizer.state_dict())
    with torch.no_grad():
        hidden = network.featurizer[0](samples.x) / (1 + 1e-5) ** 0.5  # untouched statistics
        weight, bias = network.classifier.weight.clone(), network.classifier.bias.clone()
    targets = torch.eye(3).double()[samples.y]
    shares = torch.cat([torch.full((n, 1), 1 / (2 * n)) for n in samples.sizes]).double()
    for step in range(4):
        logs = optimizer_step(method, network, players, samples, step)
        probabilities = (hidden @ weight.T + bias).softmax(1)
        risk = -(shares * targets * probabilities.log()).sum()
        torch.testing.assert_close(logs["risk"], risk)
        error = shares * (probabilities - targets)
        weight, bias = weight - 0.1 * error.T @ hidden, bias - 0.1 * error.sum(0)
    torch.testing.assert_close(network.classifier.weight.detach(), weight)
    torch.testing.assert_close(network.classifier.bias.detach(), bias)
    for name, value in network.featurizer.state_dict().items():
        assert torch.equal(value, start[name])


def test_its_weights_have_the_names_of_the_model() -> None:
    network = model()
    names = list(network.state_dict())
    prepared = LinearProbe().prepare(network, FACTS)
    assert list(prepared.state_dict()) == names
    assert [n for n, p in prepared.named_parameters() if p.requires_grad] == [
        "classifier.weight", "classifier.bias",
    ]  # fmt: skip


def test_the_featurizer_is_never_in_training_mode() -> None:
    network = LinearProbe().prepare(model(), FACTS)
    for mode in (True, False, True):
        network.train(mode)
        assert not any(module.training for module in network.featurizer.modules())
        assert network.classifier.training == mode
