"""Risks other than the mean, written out with loops in float64."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.eqrm import Eqrm
from fishr_exp.trainers.group_dro import GroupDro
from fishr_exp.trainers.mixup import Mixup
from fishr_exp.trainers.rsc import Rsc

SIZES = (6, 7, 5)
FACTS = Facts(("a", "b", "c"), 3, 4, 100)


def model(outputs: int = 3) -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    return Model(featurizer, nn.Linear(4, outputs)).double()


def batch(*sizes: int, classes: int = 3) -> Batch:
    torch.manual_seed(1)
    x = torch.randn(sum(sizes), 5, dtype=torch.float64)
    return Batch(x, torch.randint(classes, (sum(sizes),)), sizes)


def risks(network: Model, of: Batch) -> torch.Tensor:
    pairs = zip(of.by_domain(network(of.x)), of.by_domain(of.y), strict=True)
    return torch.stack([F.cross_entropy(z, y) for z, y in pairs])


@pytest.mark.parametrize(("convention", "share"), [("domainbed", 1.0), ("domainbed_2020", 1 / 3)])
def test_group_dro_weighs_domains_by_the_risks_so_far(convention: str, share: float) -> None:
    network, of = model(), batch(*SIZES)
    method = GroupDro(0.5, convention).double()  # type: ignore[arg-type]
    method.prepare(network, FACTS)
    method.double()
    q = [1.0, 1.0, 1.0]
    for step in range(4):
        r = risks(network, of)
        q = [w * math.exp(0.5 * value) for w, value in zip(q, r.tolist(), strict=True)]
        q = [w / sum(q) for w in q]
        found = method.objective(network, of, step)
        expected = share * sum(w * value for w, value in zip(q, r, strict=True))
        torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.logs["risk"], r.mean())
    assert method.state_dict()["weights"].tolist() == pytest.approx(q)


def test_group_dro_gives_the_worst_domain_all_weight_if_eta_is_large() -> None:
    """In float32, where exp(eta · R) would be infinite."""
    network, of = model().float(), batch(*SIZES)
    of = Batch(of.x.float(), of.y, of.sizes)
    method = GroupDro(1e4)
    method.prepare(network, FACTS)
    found = method.objective(network, of, 0).total
    torch.testing.assert_close(found, risks(network, of).max())


def test_the_smallest_alpha_mixes_little() -> None:
    torch.manual_seed(0)
    drawn = torch.distributions.Beta(0.01, 0.01).sample((10_000,))
    assert ((drawn > 0.05) & (drawn < 0.95)).float().mean().item() == pytest.approx(0.029, abs=0.01)


@pytest.mark.parametrize("quantile", [0.6, 0.75, 0.99, 1 - 1e-12])
def test_eqrm_is_the_quantile_of_the_density(quantile: float) -> None:
    network, of = model(), batch(*SIZES)
    method = Eqrm(quantile, anneal_steps=5, lr_after=1e-4)
    before = method.objective(network, of, 4).total
    torch.testing.assert_close(before, risks(network, of).mean(), rtol=1e-14, atol=0)
    r = risks(network, of)
    h = 1.06 * np.std(r.tolist(), ddof=1) * 3 ** (-1 / 5)
    v = method.objective(network, of, 5).total
    cdf = sum(0.5 * (1 + math.erf((v.item() - e) / (h * math.sqrt(2)))) for e in r.tolist()) / 3
    assert cdf == pytest.approx(quantile, abs=1e-9)
    assert method.resets == {5: {"lr": 1e-4}}
    # Its gradient: with t held constant, between the smallest and the largest risk.
    z = torch.tensor(statistics.NormalDist().inv_cdf(quantile), dtype=torch.float64)
    width = 1.06 * 3 ** (-1 / 5) * r.std(unbiased=True)
    low, high = r.min() + width * z, r.max() + width * z
    t = ((v - low) / (high - low)).detach()
    weights = list(network.parameters())
    expected = torch.autograd.grad((1 - t) * low + t * high, weights)
    for left, right in zip(torch.autograd.grad(v, weights), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-14)


def test_eqrm_close_to_one_is_given_by_a_logarithm() -> None:
    network, of = model(), batch(*SIZES)
    r = risks(network, of)
    h = 1.06 * r.std() * 3 ** (-1 / 5)
    found = Eqrm(-100.0, anneal_steps=0).objective(network, of, 0).total
    torch.testing.assert_close(found, (r + h * math.sqrt(200)).mean())


def test_eqrm_of_equal_risks_is_their_mean() -> None:
    of = batch(4)
    twice = Batch(of.x.repeat(2, 1), of.y.repeat(2), (4, 4))
    network = model()
    found = Eqrm(anneal_steps=0).objective(network, twice, 0).total
    torch.testing.assert_close(found, risks(network, twice).mean())
    gradients = torch.autograd.grad(found, list(network.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_mixup_mixes_neighbors_in_a_ring() -> None:
    network, of = model(), batch(*SIZES)
    torch.manual_seed(5)
    found = Mixup(0.7).objective(network, of, 0)
    torch.manual_seed(5)
    order = torch.randperm(3).tolist()
    x, y = of.by_domain(of.x), of.by_domain(of.y)
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(3):
        a, b = order[k], order[(k + 1) % 3]
        share = torch.distributions.Beta(0.7, 0.7).sample().item()
        for i in range(min(len(x[a]), len(x[b]))):
            z = network(share * x[a][i] + (1 - share) * x[b][i])[None]
            loss = share * F.cross_entropy(z, y[a][i : i + 1])
            loss = loss + (1 - share) * F.cross_entropy(z, y[b][i : i + 1])
            expected = expected + loss / min(len(x[a]), len(x[b])) / 3
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    assert torch.equal(found.logs["risk"], found.total)


def test_mixup_makes_one_forward_pass() -> None:
    network, of = model(), batch(*SIZES)
    passes: list[int] = []
    network.featurizer.register_forward_hook(lambda _m, x, _y: passes.append(len(x[0])))
    Mixup().objective(network, of, 0)
    assert len(passes) == 1


@pytest.mark.parametrize("outputs", [3, 1])
def test_rsc_mutes_what_the_true_class_depends_on(outputs: int) -> None:
    network, of = model(outputs), batch(*SIZES, classes=max(2, outputs))
    found = Rsc(0.5, 0.3).objective(network, of, 0)
    weight = network.classifier.weight.detach()
    bias = network.classifier.bias.detach()
    if outputs == 1:  # the logits of two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    f = network.featurizer(of.x)
    keep, fall = [], []
    for i, y in enumerate(of.y.tolist()):
        limit = np.percentile(weight[y].numpy(), 50)
        keep.append(torch.tensor([float(w < limit) for w in weight[y]], dtype=torch.float64))
        before = (weight @ f[i] + bias).softmax(0)[y]
        fall.append((before - (weight @ (f[i] * keep[i]) + bias).softmax(0)[y]).item())
    limit = np.percentile(fall, 70)
    assert 0 < sum(value >= limit for value in fall) < len(fall)
    muted = [f[i] * keep[i] if fall[i] >= limit else f[i] for i in range(len(f))]
    z = network.classifier(torch.stack(muted))
    two = torch.cat([-z, z], 1) / 2 if outputs == 1 else z
    losses = F.cross_entropy(two, of.y, reduction="none")
    expected = torch.stack([own.mean() for own in losses.split(SIZES)]).mean()
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GroupDro(-1.0), "eta"),
        (lambda: GroupDro(1.0, "mine"), "convention"),
        (lambda: Eqrm(0.0), "quantile"),
        (lambda: Eqrm(1.0), "quantile"),
        (lambda: Eqrm(float("nan")), "quantile"),
        (lambda: Eqrm(1e-300), "quantile"),
        (lambda: Eqrm(anneal_steps=-1), "anneal_steps"),
        (lambda: Eqrm(lr_after=-1.0), "lr_after"),
        (lambda: Eqrm(lr_after=0.0), "lr_after"),
        (lambda: Mixup(0.0), "alpha"),
        (lambda: Mixup(0.009), "alpha"),
        (lambda: Mixup(float("nan")), "alpha"),
        (lambda: Rsc(drop_features=1.0), "drop_features"),
        (lambda: Rsc(drop_samples=-0.1), "drop_samples"),
    ],
)
def test_refuses(make: Callable[[], Trainer], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.{key}="):
        make()
