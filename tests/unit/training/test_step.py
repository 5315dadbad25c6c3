"""The step: players, objectives in turn, given gradients, resets, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Facts, Model, Objective, Parameters, Trainer, trainable
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers.erm import Erm
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.loop import Training
from fishr_exp.training.step import check_weights, make_players, optimizer_step

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def batch() -> Batch:
    torch.manual_seed(1)
    x = torch.randn(8, 3, dtype=torch.float64)
    return Batch(x, torch.arange(8) % 2, (4, 4))


class Own(Trainer):
    """A trainer with a linear layer of its own, and an objective that a test gives."""

    def __init__(self, objective, players=None) -> None:
        super().__init__(per_sample_losses)
        self._objective, self._players = objective, players
        self.own = nn.Linear(2, 2).double()

    def players(self, model: Model) -> Mapping[str, Parameters]:
        return super().players(model) if self._players is None else self._players(self, model)

    def objective(self, model: Model, batch: Batch, step: int):
        return self._objective(self, model, batch, step)


def both(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
    total = per_sample_losses(trainer.own(network(batch.x)), batch.y).mean()
    return Objective(total, {"risk": total})


def apart(trainer: Own, network: Model) -> Mapping[str, Parameters]:
    return {"model": trainable(network), "own": trainable(trainer.own)}


def test_by_default_one_player_owns_model_and_trainer() -> None:
    trainer, network = Own(both), model()
    players = make_players(trainer, network, SGD)
    assert [id(p) for p in players["model"].parameters] == [
        id(p) for p in (*network.parameters(), *trainer.own.parameters())
    ]
    before = trainer.own.weight.clone()
    optimizer_step(trainer, network, players, batch(), 0)
    assert not torch.equal(before, trainer.own.weight)


def test_objectives_are_computed_in_turn_from_the_weights_before() -> None:
    def in_turn(trainer: Own, network: Model, batch: Batch, step: int) -> Iterator[Objective]:
        seen.append(trainer.own.weight.clone())
        first = both(trainer, network, batch, step).total
        yield Objective(first, {"risk": first}, player="own")
        seen.append(trainer.own.weight.clone())
        second = both(trainer, network, batch, step).total
        yield Objective(second, {"risk": second, "second": second})

    seen: list[torch.Tensor] = []
    trainer, network = Own(in_turn, apart), model()
    players = make_players(trainer, network, SGD)
    before = network.classifier.weight.clone()
    expected = both(trainer, network, batch(), 0).total
    (slope,) = torch.autograd.grad(expected, trainer.own.weight)
    logs = optimizer_step(trainer, network, players, batch(), 0)
    torch.testing.assert_close(seen[1], seen[0] - 0.1 * slope)
    assert torch.equal(seen[1], trainer.own.weight)  # the second update is the model's alone
    assert not torch.equal(before, network.classifier.weight)
    torch.testing.assert_close(logs["risk"], (expected.detach() + logs["second"]) / 2)
    assert not any(value.requires_grad for value in logs.values())


def test_players_that_move_together_share_one_backward_pass() -> None:
    def together(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        return both(trainer, network, batch, step)._replace(player=("model", "own"))

    one, other = (Own(together, apart), model()), (Own(both), model())
    other[0].load_state_dict(one[0].state_dict())
    for trainer, network in (one, other):
        optimizer_step(trainer, network, make_players(trainer, network, SGD), batch(), 0)
    for left, right in zip(one, other, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True)
        )


def test_a_given_direction_takes_the_place_of_the_gradient() -> None:
    def given(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        directions = [torch.ones_like(p) for p in network.parameters()]
        directions[0] = None
        total = torch.tensor(1.0)
        return Objective(total, {"risk": total}, gradients=directions)

    trainer, network = Own(given, apart), model()
    before = [p.clone() for p in network.parameters()]
    optimizer_step(trainer, network, make_players(trainer, network, SGD), batch(), 0)
    after = list(network.parameters())
    assert torch.equal(before[0], after[0])
    for old, new in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(new.data, old - 0.1)


def test_groups_have_their_own_rates() -> None:
    def groups(trainer: Own, network: Model) -> Mapping[str, Parameters]:
        return {
            "model": [
                {"params": network.featurizer.parameters(), "lr_factor": 0.5},
                {"params": network.classifier.parameters(), "lr": 0.01, "weight_decay": 0.1},
            ],
            "own": trainable(trainer.own),
        }

    players = make_players(Own(both, groups), model(), SGD, {"lr": 0.4})
    first, second = players["model"].optimizer.param_groups
    assert (first["lr"], first["weight_decay"]) == (0.2, 0)
    assert (second["lr"], second["weight_decay"]) == (0.01, 0.1)
    assert players["own"].optimizer.param_groups[0]["lr"] == 0.4


def test_a_reset_forgets_the_history_and_may_change_the_rate() -> None:
    trainer = Erm()
    trainer.resets = {2: {"lr": 0.5}}
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    training = Training(model(), trainer, functools.partial(torch.optim.Adam, lr=0.1), observer)
    rates = []
    for _ in range(4):
        training.reset_optimizers()
        optimizer_step(trainer, training.model, training.players, batch(), training.step)
        training.step += 1
        rates.append(training.learning_rate)
        state = training.players["model"].optimizer.state
        rates.append(int(next(iter(state.values()))["step"]))
    assert rates == [0.1, 1, 0.1, 2, 0.5, 1, 0.5, 2]


@pytest.mark.parametrize(
    ("players", "said"),
    [
        (lambda t, m: {"model": trainable(m)}, "its parameter own.weight belongs to no player"),
        (
            lambda t, m: {"model": trainable(m.featurizer), "own": trainable(t)},
            "the model's parameter classifier.weight belongs to no player",
        ),
        (lambda t, m: {"model": trainable(m, t), "idle": []}, "its player idle has no parameters"),
    ],
)
def test_parameters_without_an_owner_are_refused(players, said: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer=Own: {said}"):
        make_players(Own(both, players), model(), SGD)


def test_what_is_frozen_needs_no_owner() -> None:
    trainer = Own(both, lambda t, m: {"model": trainable(m)})
    trainer.own.requires_grad_(False)
    assert set(make_players(trainer, model(), SGD)) == {"model"}


def test_a_parameter_without_a_gradient_is_refused_at_the_first_update_of_its_player() -> None:
    def late(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        risk = per_sample_losses(network(batch.x), batch.y).mean()
        return Objective(risk, {"risk": risk}, player="own" if step == 2 else "model")

    trainer, network = Own(late, apart), model()
    players = make_players(trainer, network, SGD)
    for step in range(2):
        optimizer_step(trainer, network, players, batch(), step)
    with pytest.raises(TrainingError, match=r"own\.weight got no gradient in the first update of"):
        optimizer_step(trainer, network, players, batch(), 2)


def test_an_objective_that_is_not_finite_leaves_the_weights() -> None:
    def infinite(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        total = both(trainer, network, batch, step).total * float("inf")
        return Objective(total, {"risk": total})

    trainer, network = Own(infinite), model()
    before = network.classifier.weight.clone()
    with pytest.raises(TrainingError, match=r"not finite at step 3 \(risk inf\)"):
        optimizer_step(trainer, network, make_players(trainer, network, SGD), batch(), 3)
    assert torch.equal(before, network.classifier.weight)


@pytest.mark.parametrize("whose", ["model", "trainer"])
def test_weights_that_are_not_finite_are_refused(whose: str) -> None:
    trainer, network = Own(both), model()
    check_weights(network, trainer, 1)
    weight = network.classifier.weight if whose == "model" else trainer.own.weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=f"the {whose}'s weights are not finite after step 7"):
        check_weights(network, trainer, 7)


def test_prepare_returns_the_model_by_default() -> None:
    network = model()
    assert Erm().prepare(network, Facts(("a", "b"), 2, 4, 100)) is network


def test_a_frozen_network_of_the_trainer_needs_no_gradient() -> None:
    trainer, network = (
        Own(lambda t, m, b, s: Objective(*one(m, b)), everything),
        model(),
    )
    trainer.own.requires_grad_(False)
    optimizer_step(trainer, network, make_players(trainer, network, SGD), batch(), 0)


def everything(trainer: Own, network: Model) -> Mapping[str, Parameters]:
    return {"model": [*network.parameters(), *trainer.parameters()]}


def one(network: Model, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    risk = per_sample_losses(network(batch.x), batch.y).mean()
    return risk, {"risk": risk}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"player": "modle"}, "an objective is of player modle; its players are model, own"),
        ({"gradients": [None]}, "1 gradients were given for the 4 parameters of player model"),
    ],
)
def test_a_mistake_in_an_objective_is_one_line(change: dict, said: str) -> None:
    def wrong(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        return Objective(*one(network, batch))._replace(**change)

    trainer, network = Own(wrong, apart), model()
    with pytest.raises(TrainingError, match=f"trainer Own: {said}"):
        optimizer_step(trainer, network, make_players(trainer, network, SGD), batch(), 0)


def norm(player) -> float:
    return float(torch.stack([p.grad.norm() for p in player.parameters]).norm())


def gradients_of(of: Own, network: Model, clip_norm: float | None, step: int = 0):
    players = make_players(of, network, SGD)
    optimizer_step(of, network, players, batch(), step, clip_norm=clip_norm)
    return players


@pytest.mark.parametrize("given", [False, True], ids=["its gradient", "given"])
def test_gradients_are_clipped_to_a_total_norm_and_smaller_ones_stay(given: bool) -> None:
    kept: list[torch.Tensor] = []

    def objective(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        found = both(trainer, network, batch, step)
        if not given:
            return found
        kept[:] = torch.autograd.grad(found.total, trainable(network, trainer))
        return found._replace(gradients=kept)

    plain = gradients_of(Own(objective), model(), None)["model"]
    whole = norm(plain)
    before = [gradient.clone() for gradient in kept]
    clipped = gradients_of(Own(objective), model(), whole / 4)["model"]
    assert norm(clipped) == pytest.approx(whole / 4, rel=1e-5)
    for one, other in zip(clipped.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(one.grad, other.grad / 4, rtol=1e-5, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))  # the trainer's own
    untouched = gradients_of(Own(objective), model(), whole * 2)["model"]
    for one, other in zip(untouched.parameters, plain.parameters, strict=True):
        assert torch.equal(one.grad, other.grad)


def test_each_player_is_clipped_by_itself_at_each_of_its_updates() -> None:
    def in_turn(trainer: Own, network: Model, batch: Batch, step: int) -> Iterator[Objective]:
        found = both(trainer, network, batch, step)
        yield Objective(found.total, {"risk": found.total}, player=("model", "own"))

    plain = gradients_of(Own(in_turn, apart), model(), None)
    norms = {name: norm(player) for name, player in plain.items()}
    limit = min(norms.values()) / 3
    clipped = gradients_of(Own(in_turn, apart), model(), limit)
    assert [norm(clipped[name]) for name in norms] == pytest.approx([limit] * 2, rel=1e-5)


def test_a_gradient_that_is_not_finite_cannot_be_clipped() -> None:
    def objective(trainer: Own, network: Model, batch: Batch, step: int) -> Objective:
        found = both(trainer, network, batch, step)
        bad = [torch.full_like(p, torch.inf) for p in trainable(network, trainer)]
        return found._replace(gradients=bad)

    network = model()
    before = network.classifier.weight.detach().clone()
    said = "the gradient of player model is not finite at step 7"
    with pytest.raises(TrainingError, match=said):
        gradients_of(Own(objective), network, 1.0, step=7)
    assert torch.equal(network.classifier.weight, before)
