"""DANN's two objectives written out, and whose turn it is."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model, Objective
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.dann import Dann
from fishr_exp.training.step import make_players


def case(*sizes: int, **changes) -> tuple[Dann, Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    method = Dann(**{"width": 6, **changes})
    facts = Facts(tuple("abc"[: len(sizes)]), classes=3, features=4, steps=10, input_shape=(5,))
    assert method.prepare(network, facts) is network
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return method.double(), network, Batch(x, y, sizes)


def by_hand(method: Dann, network: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of the discriminator, and the mean squared gradient, sample by sample."""
    losses, squares = [], []
    for domain, x in enumerate(batch.by_domain(batch.x)):
        losses.append([])
        squares.append([])
        for sample in x:
            read = network.featurizer(sample[None])
            loss = F.cross_entropy(method.discriminator(read), torch.tensor([domain]))
            (slope,) = torch.autograd.grad(loss, read, create_graph=True)
            losses[-1].append(loss)
            squares[-1].append(slope.square().sum())
    means = [torch.stack([torch.stack(of).mean() for of in each]).mean()
             for each in (losses, squares)]  # fmt: skip
    return means[0], means[1]


def gradients(objective: Objective, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(objective.total, parameters, retain_graph=True))


def test_the_discriminator_minimizes_its_loss() -> None:
    method, network, batch = case(6, 4, 5, gradient_penalty=0.3)
    found = method.objective(network, batch, 1)
    loss, square = by_hand(method, network, batch)
    expected = loss + 0.3 * square
    assert found.player == "discriminator"
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = list(method.discriminator.parameters())
    for ours, slow in zip(
        gradients(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-14)


def test_the_network_minimizes_the_risk_against_it() -> None:
    method, network, batch = case(6, 4, 5, gradient_penalty=0.3, adversarial_weight=0.7)
    found = method.objective(network, batch, 0)
    loss, square = by_hand(method, network, batch)
    pairs = zip(batch.by_domain(network(batch.x)), batch.by_domain(batch.y), strict=True)
    risk = torch.stack([F.cross_entropy(z, y) for z, y in pairs]).mean()
    expected = risk - 0.7 * (loss + 0.3 * square)
    assert found.player == "model"
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.logs["risk"], risk, rtol=1e-10, atol=0)
    weights = list(network.parameters())
    for ours, slow in zip(
        gradients(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-14)


def test_both_turns_log_the_same() -> None:
    method, network, batch = case(6, 4)
    ours, theirs = (method.objective(network, batch, step).logs for step in (0, 1))
    assert set(ours) == set(theirs) == {"risk", "discriminator_loss", "objective"}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("k", "turns"), [(1, "GDGDGDGDG"), (4, "DDDGDDDDG")])
def test_the_order_is_domainbeds(k: int, turns: str) -> None:
    method, network, batch = case(6, 4, discriminator_steps=k)
    players = [method.objective(network, batch, step).player for step in range(9)]
    assert "".join("G" if player == "model" else "D" for player in players) == turns


def test_the_penalty_of_2022_is_nothing_where_domains_have_equal_sizes() -> None:
    """Its slope is that of the probabilities, weighted with the sizes of the domains."""
    for sizes, nothing in (((5, 5, 5), True), ((6, 4, 5), False)):
        method, network, batch = case(*sizes, gradient_penalty=0.3, convention="paper_2022")
        loss, _ = by_hand(method, network, batch)
        read = network.featurizer(batch.x)
        domains = torch.arange(3).repeat_interleave(torch.tensor(sizes))
        slope = method.discriminator(read).softmax(1)[:, domains].sum()
        (gradient,) = torch.autograd.grad(slope, read)
        squares = gradient.square().sum(1)
        extra = 0.3 * torch.stack([s.mean() for s in batch.by_domain(squares)]).mean()
        assert (extra < 1e-24) == nothing
        found = method.objective(network, batch, 1).total
        torch.testing.assert_close(found, loss + extra, rtol=1e-10, atol=0)


def test_optimizers_of_their_own() -> None:
    method, network, _ = case(
        6, 4, discriminator_lr=0.5, discriminator_weight_decay=0.1, beta1=0.25
    )
    adam = functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4)
    groups = {
        n: p.optimizer.param_groups[0] for n, p in make_players(method, network, adam).items()
    }
    assert {n: (g["lr"], g["weight_decay"], g["betas"]) for n, g in groups.items()} == {
        "model": (1e-3, 1e-4, (0.25, 0.9)),
        "discriminator": (0.5, 0.1, (0.25, 0.9)),
    }
    method, network, _ = case(6, 4)
    assert (
        make_players(method, network, adam)["discriminator"].optimizer.param_groups[0]["lr"] == 1e-3
    )


def test_dropout_is_before_the_relu() -> None:
    method, _, _ = case(6, 4, dropout=0.25, depth=4)
    kinds = [type(m).__name__ for m in method.discriminator]
    assert kinds == ["Linear", "Dropout", "ReLU"] * 3 + ["Linear"]
    assert method.discriminator[1].p == 0.25


@pytest.mark.parametrize(
    "wrong",
    [{"adversarial_weight": -1.0}, {"discriminator_steps": 0}, {"gradient_penalty": float("nan")},
     {"discriminator_lr": -1.0}, {"discriminator_lr": 0.0}, {"discriminator_weight_decay": -1.0},
     {"beta1": 1.0}, {"width": 0}, {"depth": 1},
     {"width": 10**20}, {"depth": 10**20}, {"dropout": 1.0}, {"convention": "mine"}],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Dann(**wrong)
