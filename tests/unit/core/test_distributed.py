"""Several processes give the objective and averaged gradients of one process.

Every method with its defaults: `tests/unit/trainers/test_two_processes.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Facts, Minibatch, Model, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.minibatches import shard_of
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.training.evaluation import Counts, count
from fishr_exp.training.step import make_players, optimizer_step

TRAINERS = Path(__file__).resolve().parents[3] / "conf" / "trainer"
OVERRIDES = [
    *([f"trainer={name}"] for name in ("erm", "fishr", "fishr_domainbed", "irm", "vrex", "mldg")),
    ["trainer=fishr", "trainer.scope=all", "trainer.unbiased=true", "trainer.l2=0.1"],
    ["trainer=fishr", "trainer.engine=backpack", "trainer.statistic=second_moment"],
    ["trainer=fishr", "clip_norm=0.001"],
    ["trainer=mldg", "clip_norm=0.001"],  # whose directions are given
]
SIZES = ((4, 2, 2), (3, 5, 3))  # by rank; the last may have an odd number
STEPS = (0, 10_000)  # a moving average takes part at the second


def _problem() -> tuple[Model, list[list[Minibatch]]]:
    """A model, and one minibatch per rank and domain."""
    torch.manual_seed(0)
    featurizer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh())
    model = Model(featurizer, torch.nn.Linear(4, 3)).double()
    return model, [
        [Minibatch(torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))) for n in sizes]
        for sizes in SIZES
    ]


def _method(overrides: list[str]) -> Trainer:
    from hydra import compose, initialize_config_dir  # here: the processes need not import it

    from fishr_exp.configuration.binding import arguments

    with initialize_config_dir(str(TRAINERS.parent), version_base="1.3"):
        config = compose("config", [*overrides, "sweep_name=test"])
        make = arguments(config, {"dataset": "", "model": "", "trainer": ""}).trainer
    return make(loss=per_sample_losses)


def _steps(method: Trainer, model: Model, batch: Batch, overrides: str = "") -> list[torch.Tensor]:
    """Return the logs and weights of each step."""
    clip_norm = 0.001 if "clip_norm=0.001" in overrides else None
    torch.manual_seed(0)  # it may make networks
    model = method.prepare(model, Facts(("a", "b", "c"), 3, 4, 20_000)).double()
    method.double()
    players = make_players(method, model, functools.partial(torch.optim.SGD, lr=0.01))
    found: list[torch.Tensor] = []
    for step in STEPS:
        logs = optimizer_step(method, model, players, batch, step, clip_norm=clip_norm)
        found += [logs[name] for name in sorted(logs)]
        found += [p.detach().clone() for of in (model, method) for p in of.parameters()]
    return found


def _rank(rank: int, folder: str, methods: dict[str, Trainer]) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SIZES)
    )
    found: dict[str, Any] = {}
    for overrides, method in methods.items():
        model, minibatches = _problem()
        found[overrides] = _steps(method, model, Batch.join(minibatches[rank]), overrides)
    model, minibatches = _problem()
    counts = _count(model, minibatches[rank][:1])
    found["counts"] = [counts.confusion, counts.loss]
    try:
        distributed.from_first(lambda: _refuse(rank))
    except ConfigError as error:
        found["error"] = str(error)
    found["first"] = distributed.from_first(lambda: rank)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _count(model: Model, chunks: list[Minibatch]) -> Counts:
    return count(model, chunks, per_sample_losses, 3, torch.device("cpu"))


def _refuse(rank: int) -> None:
    raise ConfigError("key", rank, "no")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by rank."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    methods = {" ".join(overrides): _method(overrides) for overrides in OVERRIDES}
    multiprocessing.spawn(_rank, (str(folder), methods), len(SIZES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_several_processes_are_as_one(overrides: list[str], found: list[dict[str, Any]]) -> None:
    model, minibatches = _problem()
    whole = [
        Minibatch(*(torch.cat(part) for part in zip(*domain, strict=True)))
        for domain in zip(*minibatches, strict=True)
    ]
    expected = _steps(_method(overrides), model, Batch.join(whole), " ".join(overrides))
    assert len(expected) >= 2 * (2 + 4)
    for mine in found:
        for ours, theirs in zip(mine[" ".join(overrides)], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_an_evaluation_is_that_of_all_samples(found: list[dict[str, Any]]) -> None:
    model, minibatches = _problem()
    expected = _count(model, [domains[0] for domains in minibatches])
    for mine in found:
        assert torch.equal(mine["counts"][0], expected.confusion)
        assert mine["counts"][1] == pytest.approx(expected.loss)


def test_the_result_of_the_first_process_goes_to_all(found: list[dict[str, Any]]) -> None:
    assert [mine["error"] for mine in found] == ["key=0: no"] * len(SIZES)
    assert [mine["first"] for mine in found] == [0] * len(SIZES)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [8, 9, 17, 64])
def test_shares_cover_a_minibatch(samples: int, count: int) -> None:
    parts = [list(range(samples))[shard_of(samples, rank, count)] for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(samples))
    assert all(len(part) >= 2 for part in parts)
    assert all(len(part) % 2 == 0 for part in parts[:-1])
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
