"""Distances between the distributions of the domains' features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# Of the Gaussian kernels k(a, b) = Σ_s exp(−s ‖a − b‖²), as in DomainBed.
SCALES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_SMALLEST = 1e-30  # of a squared distance, which rounding may make negative


def coral_distance(groups: Sequence[Tensor]) -> Tensor:
    """Mean over all pairs of groups of the distance of their first two moments.

    The distance of a pair is the mean squared difference of their means [F], plus that of their
    covariances [F, F], with 1 / (n − 1). Where the samples are fewer than the features, no F x F
    matrix is made: the inner product of two covariances is that of the samples' own products.

    Args:
        groups: G tensors [n, F], n >= 2 each; one group has distance 0.
    """
    means = torch.stack([group.mean(0) for group in groups])  # [G, F]
    pairs, features = max(1, len(groups) * (len(groups) - 1) // 2), means.shape[1]
    # The sum over all pairs is G times the sum of squared differences from the mean over groups.
    of_means = len(groups) * (means - means.mean(0)).square().sum() / features
    centered = [
        (group - mean) / (len(group) - 1) ** 0.5
        for group, mean in zip(groups, means, strict=True)
    ]  # fmt: skip
    if sum(map(len, groups)) < features:
        of_covariances = _by_samples(centered)
    else:
        covariances = torch.stack([group.T @ group for group in centered])  # [G, F, F]
        spread = (covariances - covariances.mean(0)).square().sum()
        of_covariances = len(groups) * spread
    return (of_means + of_covariances / features**2) / pairs


def _by_samples(centered: Sequence[Tensor]) -> Tensor:
    """Sum over all pairs of ‖A_aᵀ A_a − A_bᵀ A_b‖², from the products of samples."""
    joined = torch.cat(list(centered))
    squares = (joined @ joined.T).square()  # [N, N]
    inner = block_sums(squares, [len(group) for group in centered])  # [G, G]
    return len(centered) * inner.diagonal().sum() - inner.sum()


def mmd_distance(groups: Sequence[Tensor], scales: Sequence[float] = SCALES) -> Tensor:
    """Mean over all pairs of groups of their squared maximum mean discrepancy.

    That of groups a and b is k̄_aa + k̄_bb − 2 k̄_ab, where k̄ is the mean of the kernel over all pairs
    of samples, those of a sample with itself included.

    Args:
        groups: G tensors [n, F]; one group has distance 0.
        scales: Factors s of the Gaussian kernels exp(−s ‖a − b‖²), which are added up.
    """
    sizes = [len(group) for group in groups]
    counts = torch.tensor(sizes, dtype=groups[0].dtype, device=groups[0].device)
    means = block_sums(gaussian_kernel(torch.cat(list(groups)), scales), sizes)
    means = means / (counts[:, None] * counts)  # [G, G]
    of_pairs = [
        means[a, a] + means[b, b] - 2 * means[a, b]
        for a, b in itertools.combinations(range(len(sizes)), 2)
    ]
    return torch.stack(of_pairs).mean() if of_pairs else 0 * means.sum()


def gaussian_kernel(x: Tensor, scales: Sequence[float]) -> Tensor:
    """Σ_s exp(−s ‖x_i − x_j‖²) of all pairs of samples x [N, F]: [N, N]."""
    norms = x.square().sum(1)
    squared = torch.addmm(norms[:, None] + norms, x, x.T, alpha=-2).clamp_min(_SMALLEST)
    total = torch.exp(-scales[0] * squared)
    for scale in scales[1:]:
        total = total + torch.exp(-scale * squared)
    return total


def block_sums(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum over each block of a matrix [N, N] whose rows and columns are in G groups: [G, G]."""
    rows = torch.stack([block.sum(0) for block in matrix.split(list(sizes))])  # [G, N]
    return torch.stack([block.sum(1) for block in rows.split(list(sizes), dim=1)], dim=1)
