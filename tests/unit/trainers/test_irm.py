"""IRM's penalty against its definition: the derivative by a scale of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers._one_pass import ForwardPass
from fishr_exp.trainers.irm import Irm


def case(classes: int = 3) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, classes)).double()
    x = torch.randn(13, 5, dtype=torch.float64)
    return network, Batch(x, torch.arange(13) % max(2, classes), (6, 7))


def slope(logits: Tensor, y: Tensor) -> Tensor:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(scale * logits[:, 0], y.double())
    else:
        loss = F.cross_entropy(scale * logits, y)
    return torch.autograd.grad(loss, scale, create_graph=True)[0]


def same(found: Tensor, expected: Tensor, network: Model) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(v, list(network.parameters())) for v in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("step", "weight"), [(2, 1.0), (3, 50.0)])
def test_colored_mnist(classes: int, step: int, weight: float) -> None:
    network, batch = case(classes)
    method = Irm(50.0, convention="colored_mnist", anneal_steps=3, l2=0.1)
    domains = list(zip(batch.by_domain(network(batch.x)), batch.by_domain(batch.y), strict=True))
    losses = [method.loss(z, y).mean() for z, y in domains]
    penalty = torch.stack([slope(z, y) ** 2 for z, y in domains]).mean()
    norm = sum(p.square().sum() for p in network.parameters())
    expected = (torch.stack(losses).mean() + 0.1 * norm + weight * penalty) / weight
    same(method.objective(network, batch, step).total, expected, network)
    assert method.resets == {}


@pytest.mark.parametrize(("step", "weight"), [(2, 1.0), (3, 50.0)])
def test_domainbed(step: int, weight: float) -> None:
    network, batch = case()
    method = Irm(50.0, convention="domainbed", anneal_steps=3)
    domains = list(zip(batch.by_domain(network(batch.x)), batch.by_domain(batch.y), strict=True))
    penalty = torch.stack(
        [slope(z[::2], y[::2]) * slope(z[1::2], y[1::2]) for z, y in domains]
    ).mean()
    losses = torch.stack([F.cross_entropy(z, y) for z, y in domains]).mean()
    same(method.objective(network, batch, step).total, losses + weight * penalty, network)
    assert method.resets == {3: {}}


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"convention": "mine"}, {"anneal_steps": -1}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Irm(**{"gamma": 1.0, **wrong})


@pytest.mark.parametrize("convention", ["colored_mnist", "domainbed"])
def test_under_autocast_the_penalty_is_that_of_the_logits_in_full(convention: str) -> None:
    network, batch = case()
    network, batch = network.float(), Batch(batch.x.float(), batch.y, batch.sizes)
    method = Irm(50.0, convention=convention)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(batch.x)
        forward = ForwardPass(network, batch, method.loss, 0)
        found = method.penalty(forward)
    assert logits.dtype is torch.bfloat16
    assert found.dtype is torch.float32
    domains = list(zip(batch.by_domain(logits.double()), batch.by_domain(batch.y), strict=True))
    if convention == "colored_mnist":
        expected = torch.stack([slope(z, y) ** 2 for z, y in domains]).mean()
    else:
        pairs = [slope(z[::2], y[::2]) * slope(z[1::2], y[1::2]) for z, y in domains]
        expected = torch.stack(pairs).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
