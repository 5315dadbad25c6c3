"""MLDG's direction written out, with an Adam of its own for each inner step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.mldg import Mldg


def case(*sizes: int) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh())
    network = Model(featurizer, torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return network, Batch(x, y, sizes)


def pairs(order: list[int], n_meta_test: int) -> list[tuple[int, int]]:
    """0 stands for the ring of all domains."""
    if not n_meta_test:
        return [(order[k], order[(k + 1) % len(order)]) for k in range(len(order))]
    train, test = order[:-n_meta_test], order[-n_meta_test:]
    return [(i, test[k % n_meta_test]) for k, i in enumerate(train)]


@pytest.mark.parametrize(
    ("sizes", "n_meta_test"),
    [
        ((6, 7, 5), 2),
        ((6, 7, 5), 1),
        ((4, 4, 4, 4, 4), 2),
        ((6, 7), 1),
        ((6, 7), 0),
        ((6, 7, 5), 0),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_direction(sizes: tuple[int, ...], n_meta_test: int, seed: int) -> None:
    network, batch = case(*sizes)
    xs, ys = batch.by_domain(batch.x), batch.by_domain(batch.y)
    torch.manual_seed(seed)
    order = torch.randperm(len(sizes)).tolist()
    expected = [torch.zeros_like(p) for p in network.parameters()]
    risks, later_risks = [], []
    for i, j in pairs(order, n_meta_test):
        inner = copy.deepcopy(network)
        adam = torch.optim.Adam(inner.parameters(), lr=0.02, weight_decay=0.1)
        first = F.cross_entropy(inner(xs[i]), ys[i])
        first.backward()
        of_i = [p.grad.clone() for p in inner.parameters()]
        adam.step()
        second = F.cross_entropy(inner(xs[j]), ys[j])
        of_j = torch.autograd.grad(second, [*inner.parameters()])
        for total, g_i, g_j in zip(expected, of_i, of_j, strict=True):
            total += (g_i + 0.3 * g_j) / len(sizes)
        risks.append(first.item())
        later_risks.append(second.item())
    method = Mldg(
        0.3, "domainbed_main" if n_meta_test else "paper_2022", n_meta_test or 1,
        inner_lr=0.02, inner_weight_decay=0.1,
    )  # fmt: skip
    before = [p.clone() for p in network.parameters()]
    torch.manual_seed(seed)
    found = method.objective(network, batch, 0)
    assert found.gradients is not None
    for ours, theirs in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    logs = {name: value.item() for name, value in found.logs.items()}
    assert logs["risk"] == pytest.approx(sum(risks) / len(risks))
    assert logs["meta_test_risk"] == pytest.approx(sum(later_risks) / len(risks))
    assert logs["objective"] == pytest.approx((sum(risks) + 0.3 * sum(later_risks)) / len(sizes))


def test_two_domains_and_two_for_the_meta_test_train_nothing() -> None:
    network, _ = case(2, 2)
    facts = Facts(("a", "b"), 3, 4, 100)
    with pytest.raises(ConfigError, match=r"n_meta_test=2: .* 2 training domains .* at most 1"):
        Mldg(n_meta_test=2).prepare(network, facts)
    assert Mldg(n_meta_test=1).prepare(network, facts) is network
    assert Mldg(convention="paper_2022").prepare(network, facts) is network


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": -1.0},
        {"convention": "mine"},
        {"n_meta_test": 0},
        {"inner_lr": 0.0},
        {"inner_weight_decay": -1.0},
    ],
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Mldg(**wrong)
