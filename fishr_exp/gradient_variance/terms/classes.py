"""Samples grouped by class and domain, for statistics within classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Grouping(NamedTuple):
    """Groups of samples, one per class and domain, and one of the remaining samples, if any."""

    order: Tensor  # [N], the samples group by group
    sizes: tuple[int, ...]  # of the groups
    classes: tuple[int, ...]


def group_by_class(targets: Tensor, sizes: Sequence[int]) -> Grouping:
    """Group samples by class, and within a class by domain.

    Classes with fewer than two samples in any domain have no variance there; their
    samples form the last group.

    Args:
        targets: [N], int64.
        sizes: The D sizes.
    """
    domains = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(targets.device)
    groups: list[Tensor] = []
    classes: list[int] = []
    for c in targets.unique().tolist():
        own = [((targets == c) & (domains == d)).nonzero().squeeze(1) for d in range(len(sizes))]
        if min(len(group) for group in own) >= 2:
            groups += own
            classes.append(int(c))
    remaining = torch.ones_like(targets, dtype=torch.bool)
    for group in groups:
        remaining[group] = False
    if remaining.any():
        groups.append(remaining.nonzero().squeeze(1))
    return Grouping(torch.cat(groups), tuple(len(g) for g in groups), tuple(classes))


def by_class(name: str, value: Tensor, classes: Sequence[int], domains: int) -> dict[str, Tensor]:
    """Split a parameter's value [groups, ...] into `name[class]`, [D, ...] each.

    Without classes, return zeros under its own name.
    """
    if not classes:
        return {name: 0 * value[:1].expand(domains, *value.shape[1:])}
    return {f"{name}[{c}]": value[k * domains : (k + 1) * domains] for k, c in enumerate(classes)}
