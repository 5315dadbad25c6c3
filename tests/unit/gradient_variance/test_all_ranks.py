"""Two ranks, each with a part of every domain, give what one process gives."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn

from fishr_exp.gradient_variance import gradient_variance, penalty

RANKS = 2
SIZES = ((3, 2), (4, 5))  # by rank


def _problem() -> tuple[nn.Module, list[list[tuple[Tensor, Tensor]]]]:
    """A network, and by rank and domain a minibatch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()
    draw = lambda n: (torch.randn(n, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (n,)))  # noqa: E731
    return net, [[draw(n) for n in sizes] for sizes in SIZES]


def _join(domains: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in domains]), torch.cat([y for _, y in domains])


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    net, minibatches = _problem()
    x, y = _join(minibatches[rank])
    found = gradient_variance(net, x, y, SIZES[rank], scope="all", all_ranks=True, unbiased=True)
    value = penalty(found.variances)
    value.backward()
    for p in net.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        distributed.all_reduce(p.grad)
        p.grad /= RANKS
    torch.save((value.detach(), [p.grad for p in net.parameters()]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), RANKS)
    net, minibatches = _problem()
    whole = [_join([minibatches[r][d] for r in range(RANKS)]) for d in range(2)]
    sizes = [len(y) for _, y in whole]
    found = gradient_variance(net, *_join(whole), sizes, scope="all", unbiased=True)
    value = penalty(found.variances)
    value.backward()
    for rank in range(RANKS):
        value_r, grads_r = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(value_r, value.detach(), rtol=1e-10, atol=0)
        for p, g in zip(net.parameters(), grads_r, strict=True):
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-14)
