"""One step of the loop, the same for every trainer: its objectives in turn, each one update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fishr_exp.core import distributed
from fishr_exp.core.compiler import compiler_not_imported
from fishr_exp.core.contracts import Batch, Model, Objective, Overrides, Trainer
from fishr_exp.core.errors import ConfigError, TrainingError

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context of forward passes: `torch.autocast`, or none."""

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Makes an optimizer of parameters or groups; keywords replace the configured ones."""

Divide = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""Divides groups of parameters into further ones."""


class Player:
    """Parameters that one optimizer updates.

    Args:
        name: The player's name.
        given: Its parameters, or groups of them, as `Trainer.players` gives them.
        make_optimizer: Makes its optimizer.
        overrides: Keywords in place of the configured ones.
        divide: Divides the groups further for the optimizer; the order of `parameters` stays.

    Attributes:
        parameters: All of them, in order.
        has_moved: Whether it was updated before.
    """

    def __init__(
        self,
        name: str,
        given: Sequence[Any],
        make_optimizer: MakeOptimizer,
        overrides: Overrides,
        divide: Divide = list,
    ) -> None:
        self.name = name
        groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
        groups = [{**group, "params": list(group["params"])} for group in groups]
        self.parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        self.has_moved = False
        with compiler_not_imported():
            self.optimizer = make_optimizer(divide(groups), **overrides)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * group.get("lr_factor", 1)


def make_players(
    trainer: Trainer,
    model: Model,
    make_optimizer: MakeOptimizer,
    overrides: Overrides | None = None,
    divide: Divide = list,
) -> dict[str, Player]:
    """Make the players of a trainer, each with a new optimizer.

    Raises:
        ConfigError: If a trainable parameter has no owner, or a player no parameter.
    """
    players = {
        name: Player(name, list(given), make_optimizer, overrides or {}, divide)
        for name, given in trainer.players(model).items()
    }
    owned = {id(p) for player in players.values() for p in player.parameters}
    every = [*_named(trainer, "its"), *_named(model, "the model's")]
    if unowned := [name for name, p in every if id(p) not in owned and p.requires_grad]:
        raise ConfigError(
            "trainer", type(trainer).__name__, f"{unowned[0]} belongs to no player",
            "give it to one in `players`, or set its requires_grad to False",
        )  # fmt: skip
    if empty := [name for name, player in players.items() if not player.parameters]:
        reason = f"its player {empty[0]} has no parameters"
        raise ConfigError("trainer", type(trainer).__name__, reason)
    return players


def optimizer_step(
    trainer: Trainer,
    model: Model,
    players: Mapping[str, Player],
    batch: Batch,
    step: int,
    autocast: Autocast = contextlib.nullcontext,
    clip_norm: float | None = None,
) -> dict[str, Tensor]:
    """Update each player whose turn it is; return the trainer's logs, freed from the graph.

    With `clip_norm`, the gradients of each player, or the direction that the trainer gives in
    their place, are scaled down to this total norm if theirs is larger: after the average over
    the processes, and at each update.

    Where several objectives log the same name, the log is their mean. A trainer that does not log
    `objective` logs the total.

    Raises:
        TrainingError: If an objective is NaN or infinite, with the weights left as they were
            before its update; or if a parameter of the trainer gets no gradient when its player
            moves for the first time; or if a gradient that is to be clipped is not finite.
    """
    logs: dict[str, list[Tensor]] = {}
    for objective in _objectives(trainer, model, batch, step, autocast):
        moving = _moving(trainer, players, objective)
        parameters = [parameter for player in moving for parameter in player.parameters]
        _check_finite(objective, step)
        with compiler_not_imported():
            for player in moving:
                player.optimizer.zero_grad(set_to_none=True)
        if objective.gradients is None:
            objective.total.backward()
        else:
            for parameter, gradient in zip(parameters, objective.gradients, strict=True):
                if clip_norm is not None and gradient is not None:
                    gradient = gradient.clone()  # which may be the trainer's own
                parameter.grad = gradient
        distributed.average_gradients(parameters)
        for player in moving:
            _check_reached(trainer, player)
            if clip_norm is not None:
                _clip(player, clip_norm, step)
            with compiler_not_imported():
                player.optimizer.step()
        for name, value in objective.logs.items():
            logs.setdefault(name, []).append(torch.as_tensor(value).detach())
        if "objective" not in objective.logs:
            logs.setdefault("objective", []).append(objective.total.detach())
    return {name: v[0] if len(v) == 1 else torch.stack(v).mean() for name, v in logs.items()}


def _objectives(
    trainer: Trainer, model: Model, batch: Batch, step: int, autocast: Autocast
) -> Iterator[Objective]:
    """Compute a step's objectives, each when it is asked for."""
    with autocast():  # and not the backward pass, which takes the types of the forward one
        given = trainer.objective(model, batch, step)
    if isinstance(given, Objective):
        yield given
        return
    if not isinstance(given, Iterator):
        raise ConfigError(
            "trainer", type(trainer).__name__, f"its objective is a {type(given).__name__}",
            "return fishr_exp.contracts.Objective(total, logs), or yield several",
        )  # fmt: skip
    while True:
        with autocast():
            objective = next(given, None)
        if objective is None:
            return
        yield objective


def _moving(trainer: Trainer, players: Mapping[str, Player], objective: Objective) -> list[Player]:
    """Return the players of an objective."""
    names = (objective.player,) if isinstance(objective.player, str) else objective.player
    if unknown := [name for name in names if name not in players]:
        raise TrainingError(
            f"trainer {type(trainer).__name__}: an objective is of player {unknown[0]}; "
            f"its players are {', '.join(players)}"
        )
    moving = [players[name] for name in names]
    count = sum(len(player.parameters) for player in moving)
    if objective.gradients is not None and len(objective.gradients) != count:
        raise TrainingError(
            f"trainer {type(trainer).__name__}: {len(objective.gradients)} gradients were given "
            f"for the {count} parameters of player {', '.join(names)}; give one for each, or None"
        )
    return moving


def _check_finite(objective: Objective, step: int) -> None:
    if not torch.isfinite(objective.total):  # waits for the device; a lost night costs more
        parts = ", ".join(f"{name} {value.item():g}" for name, value in objective.logs.items())
        raise TrainingError(f"the objective is not finite at step {step} ({parts})")


def _clip(player: Player, clip_norm: float, step: int) -> None:
    """Scale the gradients of a player down to a total norm, if theirs is larger."""
    norm = nn.utils.clip_grad_norm_(player.parameters, clip_norm)
    if not norm.isfinite():  # waits for the device, as the look at the objective does
        raise TrainingError(f"the gradient of player {player.name} is not finite at step {step}")


def _check_reached(trainer: Trainer, player: Player) -> None:
    """Refuse a parameter of the trainer that is silently not trained."""
    if player.has_moved:
        return
    own = {id(parameter) for parameter in player.parameters}
    without = [
        name
        for name, p in _named(trainer, "its")
        if id(p) in own and p.requires_grad and p.grad is None
    ]
    if without:
        raise TrainingError(
            f"trainer {type(trainer).__name__}: {without[0]} got no gradient in the first update "
            f"of player {player.name}; the objective must depend on it, or another player own it"
        )
    player.has_moved = True


def _named(module: nn.Module, whose: str) -> list[tuple[str, Tensor]]:
    return [(f"{whose} parameter {name}", p) for name, p in module.named_parameters()]


def check_weights(model: Model, trainer: Trainer, step: int) -> None:
    """Refuse NaN and infinities in the weights, which a finite objective may leave behind.

    Raises:
        TrainingError: If there is one, after `step` updates.
    """
    for whose, module in (("model", model), ("trainer", trainer)):
        state = [v for v in module.state_dict().values() if isinstance(v, Tensor)]
        finite = [value.isfinite().all() for value in state if value.is_floating_point()]
        if finite and not torch.stack(finite).all():
            raise TrainingError(f"the {whose}'s weights are not finite after step {step}")
