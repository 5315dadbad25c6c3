from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Batch, Model, Objective, Trainer
from fishr_exp.gradient_variance import gradient_variance, per_sample_losses
from fishr_exp.trainers.composed import Composed
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.vrex import Vrex
from fishr_exp.training.diagnostics import diagnose

METHODS = [
    Fishr(5.0),
    Fishr(5.0, anneal_steps=9),
    Fishr(0.0, scope="all"),
    Fishr(9.0, convention="domainbed", ema_decay=0.9),
    Fishr(9.0, convention="colored_mnist", anneal_steps=9),
    Irm(5.0, convention="colored_mnist"),
    Vrex(0.0),
]


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(11, 4), torch.randint(3, (11,)), (6, 5))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return Model(featurizer, nn.Linear(6, 3))


def gradient(value: Tensor, model: Model) -> Tensor:
    weights = list(model.parameters())
    grads = torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def test_norms_and_distances_by_hand(model, batch):
    found = diagnose(Fishr(1.0), model, batch, ["a", "b"], 0)
    variances = gradient_variance(model, batch.x, batch.y, batch.sizes).variances
    a, b = torch.cat([v.flatten(1) for v in variances.values()], 1)
    assert found["variance_norm/a"] == pytest.approx(a.norm().item(), rel=1e-5)
    assert found["variance_norm/b"] == pytest.approx(b.norm().item(), rel=1e-5)
    assert found["variance_distance/a/b"] == pytest.approx((a - b).norm().item(), rel=1e-5)


@pytest.mark.parametrize("method", [Fishr(1.0), Fishr(1.0, statistic="second_moment"), Vrex(1.0)])
def test_over_all_parameters_by_hand(model, batch, method):
    plain = diagnose(method, model, batch, ["a", "b"], 0)
    found = diagnose(method, model, batch, ["a", "b"], 0, all_parameters=True)
    rows = []
    for size_from, size_to in ((0, 6), (6, 11)):
        each = [
            gradient(per_sample_losses(model(batch.x[i : i + 1]), batch.y[i : i + 1])[0], model)
            for i in range(size_from, size_to)
        ]
        rows.append(torch.stack(each).var(0, unbiased=False))
    a, b = rows
    everywhere = {
        "variance_norm_all/a": pytest.approx(a.norm().item(), rel=1e-5),
        "variance_norm_all/b": pytest.approx(b.norm().item(), rel=1e-5),
        "variance_distance_all/a/b": pytest.approx((a - b).norm().item(), rel=1e-5),
    }
    assert found == plain | everywhere


def test_batch_norm_is_no_reason_to_refuse_a_look(batch):
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())
    model = Model(featurizer, nn.Linear(6, 3)).train()
    before = copy.deepcopy(model.state_dict())
    found = diagnose(Fishr(1.0), model, batch, ["a", "b"], 0, all_parameters=True)
    assert found["variance_norm_all/a"] > found["variance_norm/a"] > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("gamma", "method"), [(5.0, Fishr(5.0)), (5.0, Vrex(5.0))])
def test_share_and_cosine_by_hand(model, batch, gamma, method):
    found = diagnose(method, model, batch, ["a", "b"], 0)
    objective = method.objective(model, batch, 0)
    risk, penalty = objective.logs["risk"], objective.logs["penalty"]
    share = gamma * penalty / (risk + gamma * penalty)
    assert found["penalty_share"] == pytest.approx(share.item(), rel=1e-5)
    cosine = torch.cosine_similarity(gradient(risk, model), gradient(penalty, model), dim=0)
    assert found["gradient_cosine"] == pytest.approx(cosine.item(), rel=1e-4)


def test_the_share_follows_a_schedule_and_a_division(model, batch):
    method = Fishr(1e4, convention="colored_mnist", anneal_steps=9)
    before, after = (diagnose(method, model, batch, ["a", "b"], step) for step in (8, 9))
    logs = method.objective(model, batch, 9).logs
    risk, penalty = logs["risk"].item(), logs["penalty"].item()
    assert before["penalty_share"] == pytest.approx(penalty / (risk + penalty), rel=1e-4)
    expected = 1e4 * penalty / (risk + 1e4 * penalty)
    assert after["penalty_share"] == pytest.approx(expected, rel=1e-4)


def test_at_weight_zero_the_share_is_zero_and_the_cosine_that_of_any_weight(model, batch):
    acting = diagnose(Fishr(5.0), model, batch, ["a", "b"], 0)
    for method in (Fishr(0.0), Fishr(5.0, anneal_steps=3), Fishr(5.0, penalty_interval=4)):
        found = diagnose(method, model, batch, ["a", "b"], 1)
        assert found["gradient_cosine"] == pytest.approx(acting["gradient_cosine"], rel=1e-5)
        if not method.penalty_interval > 1:
            assert found["penalty_share"] == 0


def test_each_of_several_penalties_has_its_share_and_its_cosine(model, batch):
    """Also at weight zero, and where one acts at every other step only."""
    penalties = {
        "fishr": {"gamma": 5.0, "penalty_interval": 2},
        "vrex": {"gamma": 2.0},
        "coral": {"gamma": 0.0},
    }
    method = Composed("mean", penalties)
    found = diagnose(method, model, batch, ["a", "b"], 1)
    logs = Composed("mean", {**penalties, "coral": {"gamma": 1.0}}).objective(model, batch, 2).logs
    weighed = {"fishr": 5 * 2, "vrex": 2, "coral": 0}
    total = logs["risk"] + sum(w * logs[f"penalty_{name}"] for name, w in weighed.items())
    for name, weight in weighed.items():
        penalty = logs[f"penalty_{name}"]
        share = (weight * penalty / total).item()
        assert found[f"penalty_share/{name}"] == pytest.approx(share, rel=1e-4)
        cosine = torch.cosine_similarity(
            gradient(logs["risk"], model), gradient(penalty, model), dim=0
        )
        assert found[f"gradient_cosine/{name}"] == pytest.approx(cosine.item(), rel=1e-3)
    assert {key for key in found if key.startswith(("penalty", "gradient"))} == {
        f"{key}/{name}" for key in ("penalty_share", "gradient_cosine") for name in weighed
    }


def test_erm_has_variances_only(model, batch):
    found = diagnose(Erm(), model, batch, ["a", "b"], 0)
    assert set(found) == {"variance_norm/a", "variance_norm/b", "variance_distance/a/b"}


def test_equal_domains_have_no_distance_and_no_cosine(model):
    half = torch.randn(5, 4)
    batch = Batch(torch.cat([half, half]), torch.tensor([0, 1, 2, 0, 1] * 2), (5, 5))
    found = diagnose(Vrex(1.0), model, batch, ["a", "b"], 0)
    assert found["variance_distance/a/b"] == pytest.approx(0.0, abs=1e-6)
    assert found["penalty_share"] == pytest.approx(0.0, abs=1e-9)


class Other(Trainer):
    """A method that somebody else wrote: nothing but an objective, and two logs."""

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        risk = model(batch.x).square().mean()
        penalty = sum(p.square().sum() for p in model.parameters())
        return Objective(risk + 3 * penalty, {"risk": risk, "penalty": penalty})


def test_any_method_that_logs_risk_and_penalty(model, batch):
    found = diagnose(Other(per_sample_losses), model, batch, ["a", "b"], 0)
    logs = Other(per_sample_losses).objective(model, batch, 0).logs
    share = 3 * logs["penalty"] / (logs["risk"] + 3 * logs["penalty"])
    assert found["penalty_share"] == pytest.approx(share.item(), rel=1e-5)
    assert -1 <= found["gradient_cosine"] <= 1


class Early(Other):
    """It logs a penalty of its own before it has a weight, and another one afterwards."""

    gamma = 0.0

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        risk = self.loss(model(batch.x), batch.y).mean()
        key = "penalty_late" if self.gamma else "penalty_early"
        return Objective(risk, {"risk": risk, key: risk.detach() if not self.gamma else risk**2})


def test_a_penalty_that_another_weight_does_not_have_has_a_share_only(model, batch):
    found = diagnose(Early(per_sample_losses), model, batch, ["a", "b"], 0)
    assert "penalty_share/early" in found
    assert not [key for key in found if key.startswith("gradient_cosine")]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_look_leaves_no_trace(batch, method):
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Dropout(0.5))
    if getattr(method, "scope", "classifier") == "all":
        featurizer = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5))
    model = Model(featurizer, nn.Linear(6, 3))
    method = copy.deepcopy(method)
    method.objective(model, batch, 0).total.backward()
    before = copy.deepcopy((model.state_dict(), method.state_dict()))
    grads = [p.grad.clone() for p in model.parameters()]
    stream = torch.get_rng_state()
    first, second = (diagnose(method, model, batch, ["a", "b"], 10) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert model.training
    for old, new in zip(before, (model.state_dict(), method.state_dict()), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
