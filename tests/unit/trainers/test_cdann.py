"""What CDANN changes in DANN: what the discriminator reads, and how its losses are weighted."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.trainers.cdann import Cdann


def test_the_discriminator_knows_the_class_and_classes_weigh_the_same() -> None:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)).double()
    method = Cdann(width=6, gradient_penalty=0.3, adversarial_weight=0.7)
    method.prepare(network, Facts(("a", "b"), classes=4, features=4, steps=10))
    method.double()
    y = torch.tensor([0, 0, 2, 0, 2, 0, 0])  # class 1 is missing, and 2 is the largest label
    batch = Batch(torch.randn(7, 5, dtype=torch.float64), y, (3, 4))
    loss, squares = torch.zeros(()).double(), [[], []]
    for i, domain in enumerate([0, 0, 0, 1, 1, 1, 1]):
        read = network.featurizer(batch.x[i : i + 1]) + method.class_embeddings.weight[y[i]]
        own = F.cross_entropy(method.discriminator(read), torch.tensor([domain]))
        loss = loss + own / ((y == y[i]).sum() * 3)
        (slope,) = torch.autograd.grad(own, read, create_graph=True)
        squares[domain].append(slope.square().sum())
    expected = loss + 0.3 * torch.stack([torch.stack(of).mean() for of in squares]).mean()
    found = method.objective(network, batch, 1)
    assert found.player == "discriminator"
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    weights = list(method.parameters())
    pairs = zip(
        torch.autograd.grad(found.total, weights), torch.autograd.grad(expected, weights),
        strict=True,
    )  # fmt: skip
    for ours, slow in pairs:
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-14)
    of_network = method.objective(network, batch, 0)
    risk = of_network.logs["risk"]
    torch.testing.assert_close(of_network.total, risk - 0.7 * expected, rtol=1e-10, atol=0)


def test_the_embeddings_move_with_the_discriminator() -> None:
    method, network = Cdann(), Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    method.prepare(network, Facts(("a", "b"), classes=3, features=4, steps=10))
    (own,) = method.players(network)["discriminator"]
    assert any(p is method.class_embeddings.weight for p in own["params"])
