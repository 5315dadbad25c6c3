"""Objectives of one forward pass, written out with loops in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers import composed
from fishr_exp.trainers._distances import coral_distance, mmd_distance
from fishr_exp.trainers._one_pass import Part, Penalty
from fishr_exp.trainers.cad import Cad
from fishr_exp.trainers.causirl_coral import CausirlCoral
from fishr_exp.trainers.causirl_mmd import CausirlMmd
from fishr_exp.trainers.cond_cad import CondCad
from fishr_exp.trainers.coral import Coral
from fishr_exp.trainers.ib_erm import IbErm
from fishr_exp.trainers.ib_irm import IbIrm
from fishr_exp.trainers.idm import Idm
from fishr_exp.trainers.iga import Iga
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.mmd import Mmd
from fishr_exp.trainers.rdm import Rdm
from fishr_exp.trainers.sd import Sd

SIZES = (6, 7, 5)


def model() -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    return Model(featurizer, nn.Linear(4, 3)).double()


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (sum(sizes),), generator=generator)
    return Batch(x + torch.arange(sum(sizes))[:, None] / 10, y, sizes)


class Passed:
    """A forward pass, domain by domain."""

    def __init__(self, network: Model, of: Batch) -> None:
        self.x, self.y = of.by_domain(of.x), of.by_domain(of.y)
        self.f = [network.featurizer(x) for x in self.x]
        self.z = [network.classifier(f) for f in self.f]
        pairs = list(zip(self.z, self.y, strict=True))
        self.losses = [F.cross_entropy(z, y, reduction="none") for z, y in pairs]
        self.risks = torch.stack([losses.mean() for losses in self.losses])
        self.network = network


def sd(p: Passed) -> Tensor:
    return torch.cat(p.z).pow(2).mean()


def ib(p: Passed) -> Tensor:
    return torch.stack([f.var(dim=0, unbiased=True).mean() for f in p.f]).mean()


def iga(p: Passed) -> Tensor:
    weights = list(p.network.parameters())
    by_domain = [
        torch.cat([g.flatten() for g in torch.autograd.grad(r, weights, create_graph=True)])
        for r in p.risks
    ]
    mean = torch.stack(by_domain).mean(0)
    return sum(((g - mean) ** 2).sum() for g in by_domain)  # type: ignore[return-value]


def rdm(p: Passed) -> Tensor:
    worst, everything = p.losses[int(p.risks.argmax())], torch.cat(p.losses)
    scales = [10.0**k for k in range(-4, 4)]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b) ** 2
        return sum(torch.exp(-s * squares) for s in scales).mean()  # type: ignore[union-attr]

    distance = kernel(worst, worst) + kernel(everything, everything) - 2 * kernel(worst, everything)
    return 3 * distance + 0.2 * (everything.var() + worst.var())


def cad(p: Passed, *, same_label: bool) -> Tensor:
    f, y = torch.cat(p.f), torch.cat(p.y)
    d = [e for e, own in enumerate(p.f) for _ in own]
    rows = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        alike = [j for j in others if y[j] == y[i]]
        among = alike if same_label else others
        found = [j for j in among if d[j] != d[i]]
        if not (found if same_label else alike):
            continue
        weights = {j: torch.exp(f[i] @ f[j] / 0.1) for j in among}
        share = sum(weights[j] for j in found) / sum(weights.values())
        rows.append(-(0.1 / 0.07) * torch.log(share))  # type: ignore[arg-type]
    return torch.stack(rows).mean()


def spread(by_domain: list[Tensor]) -> Tensor:
    ordered = torch.stack([values.sort(0).values for values in by_domain])
    mean = ordered.mean(0)
    return torch.stack([((own - mean) ** 2).mean() for own in ordered]).mean()


def sample_gradients(p: Passed) -> list[Tensor]:
    weights = list(p.network.classifier.parameters())
    return [
        torch.stack(
            [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)]
                )
                for loss in losses
            ]
        )
        for losses in p.losses
    ]


CASES: dict[str, tuple[Trainer, Callable[[Passed], Tensor]]] = {
    "coral": (Coral(2.0), lambda p: 2 * coral_distance(p.f)),
    "mmd": (Mmd(2.0), lambda p: 2 * mmd_distance(p.f)),
    "sd": (Sd(0.3), lambda p: 0.3 * sd(p)),
    "ib_erm": (IbErm(5.0), lambda p: 5 * ib(p)),
    "iga": (Iga(7.0), lambda p: 7 * iga(p)),
    "rdm": (Rdm(3.0, 0.2, 0), rdm),
    "cad": (Cad(0.5), lambda p: 0.5 * cad(p, same_label=False)),
    "cond_cad": (CondCad(0.5), lambda p: 0.5 * cad(p, same_label=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_objective_and_its_gradient(name: str) -> None:
    method, penalty = CASES[name]
    network, of = model(), batch(*SIZES)
    weights = list(network.parameters())
    found = method.objective(network, of, 0).total  # type: ignore[union-attr]
    passed = Passed(network, of)
    expected = passed.risks.mean() + penalty(passed)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    ours, theirs = (torch.autograd.grad(total, weights) for total in (found, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_ib_irm_is_the_sum_of_both_with_their_own_schedules() -> None:
    network, of = model(), batch(*SIZES)
    passed = Passed(network, of)
    irm = Irm(1.0).objective(network, of, 0).logs["penalty"]
    method = IbIrm(irm_gamma=3.0, irm_anneal_steps=5, ib_gamma=2.0, ib_anneal_steps=9)
    for step, (of_irm, of_ib) in {0: (1, 0), 5: (3, 0), 9: (3, 2)}.items():
        expected = passed.risks.mean() + of_irm * irm + of_ib * ib(passed)
        torch.testing.assert_close(method.objective(network, of, step).total, expected)
    assert method.resets == {5: {}, 9: {}}


@pytest.mark.parametrize("kind", [CausirlCoral, CausirlMmd])
def test_causirl_takes_the_first_samples_of_each_domain(kind: type[CausirlCoral]) -> None:
    network, of = model(), batch(*SIZES)
    distance = mmd_distance if kind is CausirlMmd else coral_distance
    torch.manual_seed(3)
    found = kind(2.0).objective(network, of, 0).total
    torch.manual_seed(3)
    cuts = [int(torch.randint(n, ())) for n in SIZES]
    passed = Passed(network, of)
    first = torch.cat([f[:cut] for f, cut in zip(passed.f, cuts, strict=True)])
    second = torch.cat([f[cut:] for f, cut in zip(passed.f, cuts, strict=True)])
    expected = passed.risks.mean() + 2 * distance([first, second])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_causirl_has_no_penalty_for_a_group_of_one() -> None:
    """Of two domains with one sample each, no group has two."""
    logs = CausirlCoral(2.0).objective(model(), batch(1, 1), 0).logs
    assert logs["penalty"] == 0
    assert logs["objective"] == logs["risk"]


def test_idm_smooths_the_sorted_gradients() -> None:
    network = model()
    method = Idm(feature_gamma=2.0, gradient_gamma=5.0, anneal_steps=1, ema_decay=0.9)
    average = torch.zeros(())
    for step in range(3):
        of = batch(6, 6, 6, seed=step)
        passed = Passed(network, of)
        ordered = torch.stack([g.sort(0).values for g in sample_gradients(passed)])
        smooth = 0.9 * average + 0.1 * ordered
        average = smooth.detach()
        scaled = list(smooth / 0.1)
        mean = torch.stack(scaled).mean(0)
        of_gradients = torch.stack([((own - mean) ** 2).mean() for own in scaled]).mean()
        expected = passed.risks.mean() + 2 * spread(passed.f) + 5 * (step >= 1) * of_gradients
        found = method.objective(network, of, step)
        torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.logs["gradient_penalty"], of_gradients)
        weights = list(network.parameters())
        ours, theirs = (torch.autograd.grad(t, weights) for t in (found.total, expected))
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    assert method.resets == {1: {}}


def test_idm_interpolates_where_a_domain_has_more_samples() -> None:
    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    network = Model(Identity(), nn.Linear(1, 2)).double()
    x = torch.tensor([[0.0], [4.0], [3.0], [0.0], [1.0], [2.0], [4.0]], dtype=torch.float64)
    of = Batch(x, torch.tensor([0, 1, 0, 1, 0, 1, 0]), (3, 4))
    logs = Idm().objective(network, of, 0).logs
    # Sorted: 0, 3, 4 beside 0, 1, 2, 4 at their places 0, 1.5 and 3, which is 0, 1.5, 4.
    assert logs["feature_penalty"].item() == pytest.approx((0 + 0.75**2 + 0) / 3)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Coral(-1.0), "gamma"),
        (lambda: Coral(float("inf")), "gamma"),
        (lambda: Coral(1.0, l2=-1.0), "l2"),
        (lambda: Coral(1.0, l2=float("inf")), "l2"),
        (lambda: Coral(1.0, l2=float("nan")), "l2"),
        (lambda: IbErm(1.0, anneal_steps=-1), "anneal_steps"),
        (lambda: Cad(1.0, temperature=0.0), "temperature"),
        (lambda: Rdm(1.0, variance_weight=-1.0), "variance_weight"),
        (lambda: Rdm(1.0, lr_after=-1.0), "lr_after"),
        (lambda: Rdm(1.0, lr_after=0.0), "lr_after"),
        (lambda: Idm(feature_gamma=-1.0), "feature_gamma"),
        (lambda: Idm(gradient_gamma=float("nan")), "gradient_gamma"),
        (lambda: Idm(ema_decay=1.0), "ema_decay"),
        (lambda: Idm(anneal_steps=-1), "anneal_steps"),
    ],
)
def test_refuses(make: Callable[[], Trainer], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^trainer.{key}="):
        make()


def test_rdm_changes_its_rate_where_it_begins_to_act() -> None:
    assert Rdm(5.0, anneal_steps=9, lr_after=1e-5).resets == {9: {"lr": 1e-5}}
    assert Rdm(5.0, anneal_steps=9, lr_after=None).resets == {9: {}}
    assert Rdm(0.0, anneal_steps=9).resets == {}


def test_iga_normalizes_each_domain_by_itself() -> None:
    network, of = model(), batch(*SIZES)
    network.featurizer.append(nn.BatchNorm1d(4).double())
    weights = list(network.parameters())
    found = Iga(7.0).objective(network, of, 0).total
    passed = Passed(network, of)
    expected = passed.risks.mean() + 7 * iga(passed)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    ours, theirs = (torch.autograd.grad(total, weights) for total in (found, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-11)


def test_iga_costs_erm_while_it_does_not_act() -> None:
    logs = Iga(7.0, anneal_steps=3).objective(model(), batch(*SIZES), 2).logs
    assert "penalty" not in logs
    assert logs["objective"] == logs["risk"]


METHODS = [(name, kind) for name, kind in composed._methods() if issubclass(kind, Penalty)]


@pytest.mark.parametrize("kind", [kind for _, kind in METHODS], ids=[name for name, _ in METHODS])
def test_under_autocast_no_penalty_is_computed_at_half_precision(
    kind: type[Penalty], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, of = model().float(), batch(*SIZES)
    of = Batch(of.x.float(), of.y, of.sizes)
    known = {"gamma": 1.0, "anneal_steps": 0}
    method = kind(**{k: v for k, v in known.items() if k in inspect.signature(kind).parameters})
    network = method.prepare(network, Facts(("a", "b", "c"), 3, 4, 100))
    found: list[Part] = []
    parts = method.parts
    monkeypatch.setattr(method, "parts", lambda forward: found.extend(parts(forward)) or found)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(of.x).dtype is torch.bfloat16
        method.objective(network, of, 0)
    assert {part.value.dtype for part in found if part.value is not None} == {torch.float32}
