"""MTL's objective written out, and its predictions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.mtl import Mtl

SIZES = (6, 4)


def case(**changes) -> tuple[Mtl, Model, list[Batch]]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    method = Mtl(**changes)
    network = method.prepare(network, Facts(("a", "b"), 3, 4, 10, (5,))).double()
    draw = [torch.randn(10, 5, dtype=torch.float64) for _ in range(3)]
    return method.double(), network, [Batch(x, torch.arange(10) % 3, SIZES) for x in draw]


def test_the_embeddings_are_moving_averages_and_the_gradient_passes_the_newest_mean() -> None:
    method, network, batches = case(ema=0.8)
    assert network.classifier.weight.shape == (3, 8)
    body, old = network.featurizer.body, [torch.zeros(4).double()] * 2
    for step, batch in enumerate(batches):
        risks = []
        for domain, (x, y) in enumerate(
            zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True)
        ):
            new = 0.8 * body(x).mean(0) + 0.2 * old[domain]
            losses = [
                F.cross_entropy(network.classifier(torch.cat([body(s), new]))[None], c[None])
                for s, c in zip(x, y, strict=True)
            ]
            risks.append(torch.stack(losses).mean())
            old[domain] = new.detach()
        expected = (risks[0] + risks[1]) / 2
        found = method.objective(network, batch, step)
        torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(method.embeddings, torch.stack(old), rtol=1e-10, atol=0)
        weights = list(network.parameters())
        ours, slow = (torch.autograd.grad(of, weights) for of in (found.total, expected))
        for left, right in zip(ours, slow, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-14)


def test_a_prediction_reads_the_mean_of_its_batch() -> None:
    _, network, (batch, *_) = case()
    features = network.featurizer.body(batch.x)
    mean = features.mean(0)
    expected = [network.classifier(torch.cat([f, mean])) for f in features]
    torch.testing.assert_close(network(batch.x), torch.stack(expected), rtol=1e-10, atol=1e-14)
    alone = torch.cat([network(x[None]) for x in batch.x])
    assert not torch.allclose(alone, network(batch.x))


def test_published_is_noise_in_place_of_the_embedding_and_the_sum_of_the_risks() -> None:
    method, network, (batch, other, _) = case(convention="published")
    torch.manual_seed(1)
    found = method.objective(network, batch, 0)
    torch.manual_seed(1)
    noise = torch.cat([torch.randn(n, 4, dtype=torch.float64) for n in SIZES])
    logits = network.classifier(torch.cat([network.featurizer.body(batch.x), noise], 1))
    pairs = zip(batch.by_domain(logits), batch.by_domain(batch.y), strict=True)
    expected = sum(F.cross_entropy(z, y) for z, y in pairs)
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.logs["risk"], expected / 2, rtol=1e-10, atol=0)

    before = torch.get_rng_state()
    first, again = network(other.x), network(other.x)
    assert torch.equal(first, again)  # an evaluation can be repeated
    assert torch.equal(before, torch.get_rng_state())
    noise = network.featurizer(other.x)[:, 4:]
    assert noise.std() > 0.5


def test_the_embeddings_are_saved() -> None:
    method, network, (batch, other, _) = case(ema=0.5)
    method.objective(network, batch, 0)
    again, *_ = case(ema=0.5)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    one, two = (m.objective(network, other, 1).total for m in (method, again))
    assert torch.equal(one, two)


def test_a_classifier_without_bias_and_with_one_logit_stays_that() -> None:
    model = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 1, bias=False))
    made = Mtl().prepare(model, Facts(("a",), 2, 4, 10, (5,))).classifier
    assert made.weight.shape == (1, 8)
    assert made.bias is None


@pytest.mark.parametrize("wrong", [{"ema": 0.0}, {"ema": 1.1}, {"convention": "mine"}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Mtl(**wrong)
