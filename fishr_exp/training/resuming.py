"""Takes a run's folder, and goes back to where the run was stopped.

What is found there is checked before the first step: the checkpoint, the records up to it, and the
best weights. So a run with a damaged file is refused, and does not train to its end first.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fishr_exp.core import distributed, seeding
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.digests import changes
from fishr_exp.models.weights import package_of
from fishr_exp.runs.content import UnreadableError
from fishr_exp.runs.environment import environment
from fishr_exp.runs.names import SHARED
from fishr_exp.runs.run_folder import RECORDS, Record, RunFolder
from fishr_exp.runs.shared import Shared
from fishr_exp.training.checkpoint import Checkpoints, OtherBestError, check_state
from fishr_exp.training.loop import Training
from fishr_exp.training.prepared import Prepared
from fishr_exp.training.trunk import Trunk, damage, state_of_training

log = logging.getLogger(__name__)

# What the optimizers of PyTorch keep for each element of a parameter.
_ELEMENTWISE = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "sum", "ax", "prev", "step_size",
}  # fmt: skip


def start_or_continue(
    prepared: Prepared,
    run_folder: RunFolder,
    checkpoints: Checkpoints,
    trunk: Callable[[], Trunk | None] = lambda: None,
) -> Trunk | None:
    """Take the folder, and go back to the checkpoint of a run that was stopped.

    Args:
        prepared: The run.
        run_folder: Its folder.
        checkpoints: Its checkpoints.
        trunk: Finds the steps that it shares with others, in the folder that is taken.

    Returns:
        What `trunk` found, where the run has not got further.

    Raises:
        ConfigError: If the folder, the data or the records are not this run's, or damaged.
        TrainingError: If the checkpoints or the best weights cannot be used.
    """
    training = prepared.training
    shared: list[Trunk] = []
    reached = distributed.from_first(
        lambda: _open(prepared, run_folder, checkpoints, trunk, shared)
    )
    if reached:
        training.load_state_dict(reached)
        distributed.from_first(lambda: _check_best(prepared, checkpoints))
        log.info("continuing %s after step %d", run_folder.path, training.step)
    if (
        not reached or len(reached["random"]) != distributed.world_size()
    ) and not distributed.is_first():
        # From here on, let each process draw its own dropout.
        seed = prepared.arguments.seed
        seeding.seed_global_streams(seed, "training", distributed.rank(), training.step)
    return next((each for each in shared if training.step < each.step), None)


def _open(
    prepared: Prepared,
    run_folder: RunFolder,
    checkpoints: Checkpoints,
    find_trunk: Callable[[], Trunk | None],
    shared: list[Trunk],
) -> dict[str, Any] | None:
    """Take the folder; return the checkpoint to continue from, of a run that was stopped.

    The trunk that the run shares is put into `shared`.
    """
    if not prepared.arguments.resume:
        run_folder.clear()
    run_folder.open(prepared.arguments.config)
    if changed := changes(run_folder.data() or prepared.data, prepared.data):
        raise ConfigError(
            "dataset", prepared.domains.name,
            f"the data are not those that this run was started with ({changed}): its split into "
            "training and validation parts would be another",
            f"restore them, or pass resume=false to start {run_folder.path.name} from scratch",
        )  # fmt: skip
    reached = checkpoints.newest(lambda state: _try(prepared, state))
    if trunk := find_trunk():
        shared.append(trunk)
        reached = _from_trunk(prepared, run_folder, checkpoints, trunk, reached)
    taken = Shared.read(run_folder.path)
    if taken and (not reached or reached["step"] < taken.steps):  # cut off while it was taken over
        (run_folder.path / SHARED).unlink(missing_ok=True)
    _check_records(prepared, run_folder, reached)
    name = device_name(prepared.device)
    try:
        run_folder.checkpoints.mkdir(exist_ok=True)
        run_folder.write_data(prepared.data)
        prepared.model_facts.write(run_folder.path)
        weights = package_of(prepared.arguments.config.get("model", {}).get("weights_file"))
        run_folder.write_environment(
            environment(
                name, torch.get_num_threads(), distributed.world_size(), prepared.arguments.tags,
                [weights] if weights else [],
            )
        )  # fmt: skip
        run_folder.keep_until(_evaluated(prepared, reached) if reached else 0)
    except OSError as error:
        raise TrainingError(f"{error}; records and checkpoints are in {run_folder.path}") from error
    return reached


def _from_trunk(
    prepared: Prepared,
    run_folder: RunFolder,
    checkpoints: Checkpoints,
    trunk: Trunk,
    reached: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Take over shared steps that are there, if the run has not got so far; else `reached`."""
    if reached and reached["step"] >= trunk.step:
        trunk.release(run_folder.path.name)
        return reached
    if not trunk.is_there:
        return reached
    before = copy.deepcopy(prepared.training.state_dict())
    try:
        found = trunk.read(prepared.data, prepared.total_steps)
        state = state_of_training(found)
        _try(prepared, state)
        if made := _missing(prepared, found["records"], state):
            raise ValueError(f"its records are not those of its evaluations (step {made[0]})")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever is in the file
        log.warning("the shared steps are trained again; %s: %s", trunk.folder, damage(error))
        trunk.forget_state()
        prepared.training.load_state_dict(before)
        return reached
    made_by, paid = found["run"], _seconds(run_folder.records(), reached)
    took = _seconds(found["records"], found) - paid
    try:
        run_folder.checkpoints.mkdir(exist_ok=True)
        if found["best"]:
            checkpoints.save_best(found["best"])
        if made_by != run_folder.path.name:
            Shared(made_by, trunk.step, max(0.0, took)).write(run_folder.path)
        run_folder.write_records(found["records"])
        checkpoints.save(state)
    except OSError as error:
        raise TrainingError(f"{error}; records and checkpoints are in {run_folder.path}") from error
    log.info("the first %d steps are taken over from %s", trunk.step, made_by)
    trunk.release(run_folder.path.name)
    return state


def _seconds(records: Sequence[Record], state: Mapping[str, Any] | None) -> float:
    """Return how long the steps up to a state took."""
    if state is None:
        return 0.0
    ended = [r for r in records if r["step"] <= state["step"]]
    return float((ended[-1].get("seconds", 0.0) if ended else 0.0) + state["seconds"])


def device_name(device: torch.device) -> str:
    """Return what people call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _try(prepared: Prepared, state: dict[str, Any]) -> None:
    """Load a state; whatever this raises, the run cannot resume from it."""
    training = prepared.training
    check_state(state, prepared.total_steps)
    groups = {n: [*player.optimizer.param_groups] for n, player in training.players.items()}
    training.load_state_dict(state)
    _check_optimizers(training, groups)


def _check_optimizers(training: Training, groups: Mapping[str, Iterable[dict[str, Any]]]) -> None:
    """Refuse what optimizers load without a look, and stumble over in their next step."""
    for name, player in training.players.items():
        for ours, theirs in zip(groups[name], player.optimizer.param_groups, strict=True):
            for key in ours.keys() & theirs.keys() - {"params"}:
                if _is_number(ours[key]) and not _is_number(theirs[key]):
                    kind = type(theirs[key]).__name__
                    raise ValueError(f"{key} of the optimizer is of the type {kind}")
        for parameter, kept in player.optimizer.state.items():
            for key, value in kept.items():
                if key in _ELEMENTWISE and value is not None and value.shape != parameter.shape:
                    raise ValueError(f"{key} of the optimizer has the shape {[*value.shape]}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _evaluated(prepared: Prepared, reached: Mapping[str, Any]) -> int:
    """Return the last step before a checkpoint that was evaluated; 0 if there is none."""
    step, every = reached["step"], prepared.steps_per_epoch
    # An evaluation ends what is logged and timed since the one before.
    under_way = reached["logged"] or reached["seconds"]
    return (step - 1) // every * every if under_way else step


def _check_records(
    prepared: Prepared, run_folder: RunFolder, reached: Mapping[str, Any] | None
) -> None:
    """Refuse records that are not of the evaluations before the checkpoint."""
    records: list[Record] = run_folder.records()
    if reached is None:
        if records:
            log.warning("%s has no checkpoint: starting from scratch", run_folder.path)
        return
    last = _evaluated(prepared, reached)
    differing = _missing(prepared, records, reached)
    if not differing:
        return
    step = differing[0]
    problem = (
        f"lacks the evaluation of step {step}"
        if step not in {record["step"] for record in records if record["step"] <= last}
        else f"has an evaluation of step {step}, which the run did not make"
    )
    raise UnreadableError.of(
        run_folder.path / RECORDS,
        f"{problem}, and the newest checkpoint is of step {reached['step']}",
    )


def _missing(
    prepared: Prepared, records: Sequence[Record], reached: Mapping[str, Any]
) -> list[int]:
    """Return the steps before a checkpoint of evaluations without a record, or the other way."""
    last, every = _evaluated(prepared, reached), prepared.steps_per_epoch
    made = {*range(every, last + 1, every), *([last] if last else [])}
    there = {record["step"] for record in records if record["step"] <= last}
    return sorted(made ^ there)


def _check_best(prepared: Prepared, checkpoints: Checkpoints) -> None:
    """Refuse best weights that are not this run's, before it resumes.

    Earlier versions may have left those of a later step, which the run is about to train again.
    """
    training = prepared.training
    if training.observer.keep != "best" or training.observer.best_step == 0:
        return
    weights = training.averaging.averaged(training.model).state_dict()
    try:
        checkpoints.best(training.observer.best_step, weights)
    except OtherBestError as error:
        if not training.step < (error.found or 0) <= prepared.total_steps:
            raise
