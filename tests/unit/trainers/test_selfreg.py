"""SelfReg's objective written out, and its draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.selfreg import SelfReg, partners


def case(**changes) -> tuple[SelfReg, Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    method = SelfReg(**changes)
    assert method.prepare(network, Facts(("a", "b"), 3, 4, 10, (5,))) is network
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.arange(10) % 3
    return method.double(), network, Batch(x, y, (6, 4))


@pytest.mark.parametrize("right", [True, False])  # a risk below 1, and above
def test_the_objective(right: bool) -> None:
    method, network, batch = case(gamma=0.7)
    logits = network(batch.x)
    batch = dataclasses.replace(batch, y=logits.argmax(1) if right else logits.argmin(1))
    torch.manual_seed(1)
    share = torch.distributions.Beta(0.5, 0.5).sample().item()
    p, q = partners(batch.y), partners(batch.y)
    f = network.featurizer(batch.x)
    z, u = network.classifier(f), method.projector(f)
    one, mixed = [], []
    for i in range(10):
        a, b = int(p[i]), int(q[i])
        one.append((z[i] - z[a]).square().mean() + 0.3 * (f[i] - u[a]).square().mean())
        of_z, of_u = (share * v[a] + (1 - share) * v[b] for v in (z, u))
        mixed.append((z[i] - of_z).square().mean() + 0.3 * (f[i] - of_u).square().mean())
    pairs = zip(batch.by_domain(z), batch.by_domain(batch.y), strict=True)
    risk = torch.stack([F.cross_entropy(*pair) for pair in pairs]).mean()
    assert (risk < 1) == right
    distances = share * torch.stack(one).mean() + (1 - share) * torch.stack(mixed).mean()
    expected = risk + 0.7 * min(risk.item(), 1.0) * distances
    torch.manual_seed(1)
    found = method.objective(network, batch, 0)
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = [*network.parameters(), *method.parameters()]
    ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
    for left, right in zip(ours, slow, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-13)


def test_partners_are_of_one_class_and_uniform() -> None:
    torch.manual_seed(0)
    y = torch.tensor([2, 0, 2, 1, 0, 2])
    counts = torch.zeros(6, 6)
    for _ in range(600):
        drawn = partners(y)
        assert torch.equal(drawn.sort().values, torch.arange(6))
        counts[torch.arange(6), drawn] += 1
    same = y[:, None] == y
    assert not counts[~same].any()
    expected = 600 * same / same.sum(1, keepdim=True)
    assert (counts - expected).abs().max() < 60  # five standard errors


def test_only_the_intended_projector_is_trained() -> None:
    for convention, trained in (("intended", True), ("published", False)):
        method, network, batch = case(convention=convention)
        assert {p.requires_grad for p in method.parameters()} == {trained}
        before = method.projector[1].running_mean.clone()
        method.objective(network, batch, 0)
        assert not torch.equal(before, method.projector[1].running_mean)


@pytest.mark.parametrize(("features", "inner"), [(2048, 2048), (512, 1024)])
def test_the_width_of_the_projector(features: int, inner: int) -> None:
    method = SelfReg()
    model = Model(torch.nn.Identity(), torch.nn.Linear(features, 3))
    method.prepare(model, Facts(("a",), 3, features, 10))
    sizes = [m.weight.shape for m in method.projector if isinstance(m, torch.nn.Linear)]
    assert sizes == [(inner, features), (inner, inner), (features, inner)]


def test_gamma_zero_has_no_projector_and_draws_nothing() -> None:
    method, network, batch = case(gamma=0.0)
    before = torch.get_rng_state()
    assert method.objective(network, batch, 0).logs.keys() == {"risk", "objective"}
    assert not list(method.parameters())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"convention": "mine"}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        SelfReg(**wrong)
