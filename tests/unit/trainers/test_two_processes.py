"""Two processes, each with a part of every domain, train every method as one process does."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from fishr_exp.core.contracts import Batch, Minibatch
from fishr_exp.training.step import make_players, optimizer_step

from .test_methods import METHODS, batch, ready

RANKS = 2
SIZES = (8, 6, 7)
STEPS = (0, 10_000, 10_001, 10_002)  # before and after a penalty acts, with each player's turn


def shard(whole: Batch, rank: int) -> Batch:
    """The part of a rank: of every domain the first four samples, or the others.

    An even number: IRM's even and odd samples are those of each rank.
    """
    own = slice(4) if rank == 0 else slice(4, None)
    pairs = zip(whole.by_domain(whole.x), whole.by_domain(whole.y), strict=True)
    return Batch.join([Minibatch(x[own], y[own]) for x, y in pairs])


def trained(name: str, rank: int | None) -> list[Tensor]:
    """The weights after some steps, of a rank or of the only process."""
    torch.manual_seed(0)
    method, network, _ = ready(name)
    players = make_players(method, network, functools.partial(torch.optim.SGD, lr=0.05))
    for step in STEPS:
        torch.manual_seed(step)  # the draws of a method
        whole = batch(*SIZES, seed=step)
        part = whole if rank is None else shard(whole, rank)
        optimizer_step(method, network, players, part, step)
    return [p.detach() for module in (network, method) for p in module.parameters()]


def _rank(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    torch.save({name: trained(name, rank) for name in names}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    allowed = [name for name in METHODS if not ready(name)[0].refuses_processes]
    multiprocessing.spawn(_rank, (str(folder), allowed), RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(name: str, of_ranks: list[dict[str, list[Tensor]]]) -> None:
    if name not in of_ranks[0]:
        pytest.skip("it refuses several processes")
    expected = trained(name, None)
    for found in of_ranks:
        for ours, alone in zip(found[name], expected, strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-11)
