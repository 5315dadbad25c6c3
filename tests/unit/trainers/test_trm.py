"""TRM's objective written out, with whole Hessians."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.trm import Trm

SIZES = (6, 4, 5)


def case(**changes) -> tuple[Trm, Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    method = Trm(**{"anneal_steps": 0, "cosine_weight": 0.3, "eta": 0.5, **changes})
    assert method.prepare(network, Facts(("a", "b", "c"), 3, 4, 10, (5,))) is network
    x, y = torch.randn(15, 5, dtype=torch.float64), torch.arange(15) % 3
    return method.double(), network, Batch(x, y, SIZES)


def heads_by_hand(method: Trm, network: Model, batch: Batch) -> list[torch.nn.Linear]:
    """Each after 30 steps of gradient descent on its own domain."""
    found = []
    for head, x, y in zip(
        method.heads, batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True
    ):
        own = copy.deepcopy(head).requires_grad_(True)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(own(network.featurizer(x).detach()), y).backward()
            optimizer.step()
        found.append(own.requires_grad_(False))
    return found


def by_hand(
    method: Trm, network: Model, batch: Batch, heads: list[torch.nn.Linear]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The transfer risk, and the next weights."""
    xs, ys = batch.by_domain(batch.x), batch.by_domain(batch.y)
    published = method.convention == "published"
    transfers, grown = [], []
    for q, head in enumerate(heads):
        share = method.weights[q] / method.weights[q].sum()

        def risk(i: int, w: torch.Tensor, *, fixed: bool = False, b=head.bias) -> torch.Tensor:
            f = network.featurizer(xs[i])
            f = f.detach() if fixed else f
            return F.cross_entropy(f @ w.view(3, 4).T + b, ys[i])

        w = head.weight.flatten()
        others = [i for i in range(3) if i != q]

        def of_others(w: torch.Tensor) -> torch.Tensor:
            return sum(share[i] * risk(i, w) for i in others)  # noqa: B023

        v = torch.autograd.functional.jacobian(of_others, w)
        hessian = torch.autograd.functional.hessian(lambda w: risk(q, w, fixed=True), w)  # noqa: B023
        powers = [torch.linalg.matrix_power(torch.eye(12) - hessian, k) @ v for k in range(11)]
        u = sum(powers)
        assert u.abs().max() < 10
        if published:
            u = u - powers[0] + powers[1]
        next_ones = [
            share[i] * (method.eta * share[i] * risk(i, w).detach()).exp() for i in range(3)
        ]
        grown.append(torch.stack(next_ones))
        used = grown[q] if published else share
        leaf = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(risk(q, leaf), leaf, create_graph=True)
        own = sum(used[i] * risk(i, w) for i in others)
        transfers.append(own - method.cosine_weight * u.detach() @ slope)
    return torch.stack(transfers).mean(), torch.stack(grown)


@pytest.mark.parametrize("convention", ["intended", "published"])
def test_the_objective(convention: str) -> None:
    method, network, batch = case(gamma=0.7, convention=convention)
    for step in range(2):
        heads = heads_by_hand(method, network, batch)
        penalty, grown = by_hand(method, network, batch, heads)
        pairs = zip(batch.by_domain(network(batch.x)), batch.by_domain(batch.y), strict=True)
        expected = torch.stack([F.cross_entropy(z, y) for z, y in pairs]).mean() + 0.7 * penalty
        found = method.objective(network, batch, step)
        torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(method.weights, grown, rtol=1e-10, atol=0)
        for ours, slow in zip(method.heads, heads, strict=True):
            torch.testing.assert_close(ours.weight, slow.weight, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(ours.bias, slow.bias, rtol=1e-9, atol=1e-13)
        weights = list(network.parameters())
        ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
        for left, right in zip(ours, slow, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-12)


def test_a_series_that_grows_is_cut_off() -> None:
    method, network, batch = case()
    features = 10 * network.featurizer(batch.x).detach()  # a Hessian with eigenvalues above 2
    w = method.heads[0].weight.detach().clone().requires_grad_()
    vector, bias = torch.randn_like(w), method.heads[0].bias.detach()
    found = method._over_hessian(vector, features, batch.y, (w, bias))

    def risk(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(features @ w.view(3, 4).T + bias, batch.y)

    hessian = torch.autograd.functional.hessian(risk, w.detach().flatten())
    term = total = vector.detach().flatten()
    terms = 0
    while total.abs().max() <= 10:
        term = term - hessian @ term
        total, terms = total + term, terms + 1
    assert 1 < terms < 10
    torch.testing.assert_close(found.flatten(), total, rtol=1e-8, atol=0)


def test_before_anneal_steps_and_at_gamma_zero_nothing_of_it_moves() -> None:
    for changes in ({"anneal_steps": 3}, {"gamma": 0.0}):
        method, network, batch = case(**changes)
        before = copy.deepcopy(method.state_dict())
        assert set(method.objective(network, batch, 2).logs) == {"risk", "objective"}
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_heads_and_weights_are_saved() -> None:
    method, network, batch = case()
    method.objective(network, batch, 0)
    again, *_ = case()
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    one, two = (m.objective(network, batch, 1).total for m in (method, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": -1.0}, {"cosine_weight": -1.0}, {"eta": float("nan")}, {"anneal_steps": -1},
     {"convention": "mine"}],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Trm(**wrong)
