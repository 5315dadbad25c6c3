"""What may be shared between runs: every key that a method names acts only from its step on."""

from __future__ import annotations

import copy
import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from fishr_exp.core.errors import TrainingError
from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.training.step import make_players, optimizer_step
from fishr_exp.training.trunk import Trunk, find_trunk, trunks

from ..trainers.test_methods import METHODS, batch, maker, ready

STEPS = 3  # before the penalty acts
# Keys in the test configuration, and two values of each that differ.
VALUES: dict[str, tuple[Any, Any]] = {
    "gamma": (0.5, 100.0),
    "irm_gamma": (0.5, 100.0),
    "ib_gamma": (0.5, 100.0),
    "gradient_gamma": (0.5, 1000.0),
    "quantile": (0.6, 0.9),
    "lr_after": (1e-2, 1e-1),
    "variance_weight": (0.1, 5.0),
    "cosine_weight": (0.0, 1.0),
    "eta": (0.0, 5.0),
    "convention": ("intended", "published"),
}
RAMPED = {"ramp": "linear", "ramp_steps": 7}


def late(name: str) -> dict[str, Any]:
    """The keywords with which the penalty of a method acts after `STEPS`."""
    keys = inspect.signature(maker(name).func).parameters
    return {key: STEPS for key in keys if key.endswith("anneal_steps")}


def after(name: str, steps: int, **changes: Any) -> list[Any]:
    """Weights, the trainer's state and the optimizers' after some steps, and what they logged."""
    method, network, players = ready(name, **late(name), **changes)
    torch.manual_seed(0)
    logs = []
    for step in range(steps):
        if step in method.resets:
            sgd = functools.partial(torch.optim.SGD, lr=1e-3)
            players = make_players(method, network, sgd, method.resets[step])
        logs.append(optimizer_step(method, network, players, batch(6, 6, 6, seed=step), step))
    optimizers = [player.optimizer.state_dict() for player in players.values()]
    state = [network.state_dict(), method.state_dict(), optimizers, logs, torch.get_rng_state()]
    return copy.deepcopy(state)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_the_methods_with_a_weight_that_begins_late_are_among_them() -> None:
    for name in ("fishr", "irm", "vrex", "coral", "mmd", "eqrm", "idm", "ib_irm", "trm"):
        assert ready(name, **late(name))[0].acts_from


@pytest.mark.parametrize("name", METHODS)
def test_keys_act_from_their_step_on_and_not_before(name: str) -> None:
    keys = ready(name, **late(name))[0].acts_from
    if not keys:
        pytest.skip("its runs share no steps")
    assert set(keys.values()) == {STEPS}
    for key in keys:
        if key in RAMPED:
            one, other = {}, RAMPED
        else:
            one, other = ({key: value} for value in VALUES[key])
        assert same(after(name, STEPS, **one), after(name, STEPS, **other)), key
        if key not in ("lr_after", "ramp_steps"):  # with plain SGD a rate is set by its own test
            later = STEPS + 3
            assert not same(after(name, later, **one), after(name, later, **other)), key


@pytest.mark.parametrize("name", ["irm", "vrex"])
@pytest.mark.parametrize("convention", ["domainbed", "colored_mnist"])
def test_gamma_zero_shares_nothing_where_the_weight_is_one_before(
    name: str, convention: str
) -> None:
    words = {**late(name), "convention": convention}
    assert not ready(name, **words, gamma=0.0)[0].acts_from
    assert ready(name, **words, gamma=2.0)[0].acts_from["gamma"] == STEPS


def test_the_longest_steps_come_first_and_none_is_of_no_steps(tmp_path: Path) -> None:
    fishr, coral = ({"gamma": 1.0, "anneal_steps": steps} for steps in (5, 0))
    method = ready("composed", penalties={"fishr": fishr, "coral": coral})[0]
    values = {"trainer.penalties.fishr.gamma": 1, "trainer.penalties.coral.gamma": 1, "seed": 0}
    (found,) = trunks(tmp_path, method, values, diagnostics=False)
    assert found.step == 5
    assert set(found.settings) == {
        "trainer.penalties.coral.gamma", "seed", "diagnostics", "shared steps",
    }  # fmt: skip
    late_coral = {"gamma": 1.0, "anneal_steps": 3}
    method = ready("composed", penalties={"fishr": fishr, "coral": late_coral})[0]
    assert [t.step for t in trunks(tmp_path, method, values, diagnostics=False)] == [5, 3]


def test_diagnostics_are_shared_where_they_do_not_look_beyond(tmp_path: Path) -> None:
    method = ready("fishr", anneal_steps=4)[0]
    plain, looked = (
        trunks(tmp_path, method, {"trainer.gamma": 1}, diagnostics=diagnostics)[0].folder
        for diagnostics in (False, True)
    )
    assert plain != looked
    method = ready("fishr", anneal_steps=4, penalty_interval=3)[0]
    assert trunks(tmp_path, method, {"trainer.gamma": 1}, diagnostics=True) == []


def test_a_trunk_goes_with_the_last_run_that_needs_it(tmp_path: Path) -> None:
    trunk = Trunk(tmp_path / ".trunks" / "a", 5, {})
    other = Trunk(tmp_path / ".trunks" / "b", 5, {})
    trunk.want(["one", "two"])
    other.want(["three"])
    found = find_trunk(lambda: [other, trunk], tmp_path / "two")
    assert found is trunk
    assert find_trunk(lambda: [other, trunk], tmp_path / "four") is None
    assert Trunk(tmp_path / "nowhere", 5, {}).wanted == set()
    trunk.release("one")
    assert trunk.wanted == {"two"}
    trunk.release("two")
    assert not trunk.folder.exists()
    other.release("three")
    assert not (tmp_path / ".trunks").exists()


def test_without_room_a_trunk_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fishr_exp.training.trunk.save", full)
    trunk = Trunk(tmp_path / ".trunks" / "a", 5, {})
    trunk.write({"observer": {"best_step": 0}}, {}, RunFolder(tmp_path))
    assert not trunk.is_there
    assert "cannot be shared" in caplog.text


def test_a_state_that_is_none_is_refused(tmp_path: Path) -> None:
    trunk = Trunk(tmp_path, 5, {"seed": 0})
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        trunk.read({}, 10)
    for state, why in (
        ([], "it is"),
        ({"settings": {"seed": 1}}, "other settings"),
        ({"settings": {"seed": 0}, "data": {"a": "b"}}, "other data"),
    ):
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(ValueError, match=why):
            trunk.read({}, 10)
