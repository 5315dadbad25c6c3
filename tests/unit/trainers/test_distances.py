"""Distances of groups of features, beside loops over pairs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fishr_exp.trainers._distances import block_sums, coral_distance, mmd_distance


def groups(*sizes: int, features: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, features, generator=generator, dtype=torch.float64) + place
        for place, n in enumerate(sizes)
    ]


def coral_by_pairs(of: list[Tensor]) -> Tensor:
    found = []
    for a, b in itertools.combinations(of, 2):
        means = ((a.mean(0) - b.mean(0)) ** 2).mean()
        found.append(means + ((torch.cov(a.T) - torch.cov(b.T)) ** 2).mean())
    return torch.stack(found).mean()


def mmd_by_pairs(of: list[Tensor], scales: tuple[float, ...]) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        values = [sum(torch.exp(-s * ((x - y) ** 2).sum()) for s in scales) for x in a for y in b]
        return torch.stack(values).mean()  # type: ignore[arg-type]

    found = [
        mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
        for a, b in itertools.combinations(of, 2)
    ]
    return torch.stack(found).mean()


@pytest.mark.parametrize("features", [3, 40])  # fewer than the samples, and more
@pytest.mark.parametrize("sizes", [(5, 6), (4, 7, 3), (3, 3, 3, 5)])
def test_coral(sizes: tuple[int, ...], features: int) -> None:
    of = [group.requires_grad_() for group in groups(*sizes, features=features)]
    found, expected = coral_distance(of), coral_by_pairs(of)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for left, right in zip(
        torch.autograd.grad(found, of), torch.autograd.grad(expected, of), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sizes", [(5, 6), (4, 7, 3)])
def test_mmd(sizes: tuple[int, ...]) -> None:
    of, scales = groups(*sizes, features=3), (0.01, 1.0)
    found, expected = mmd_distance(of, scales), mmd_by_pairs(of, scales)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("features", [3, 40])
def test_a_single_group_is_at_distance_zero(features: int) -> None:
    of = groups(5, features=features)
    assert coral_distance(of) == 0
    assert mmd_distance(of) == 0


def test_equal_groups_are_at_distance_zero() -> None:
    (group,) = groups(5, features=40)
    assert coral_distance([group, group.clone()]).abs() < 1e-15
    assert mmd_distance([group, group.clone()]).abs() < 1e-15


def test_block_sums() -> None:
    matrix = torch.arange(16.0).view(4, 4)
    found = block_sums(matrix, [1, 3])
    assert found.tolist() == [[0, 1 + 2 + 3], [4 + 8 + 12, 5 + 6 + 7 + 9 + 10 + 11 + 13 + 14 + 15]]
