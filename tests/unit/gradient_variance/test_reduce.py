"""Statistics reduced at once are those reduced later, with the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import gradient_variance, penalty, squared_distance

SIZES = (5, 4, 6)


class Shared(nn.Module):
    """Convolution, normalization, a layer used twice, a parameter by hand, and no rule for one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.twice = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.odd = nn.PReLU(4)
        self.classifier = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.odd(self.norm(self.conv(x)).mean((2, 3)))
        return self.classifier(torch.tanh(self.twice(torch.tanh(self.twice(h)) * self.scale)))


def _case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = Shared().double()
    x = torch.randn(sum(SIZES), 1, 8, 8, dtype=torch.float64)
    return net, x, torch.arange(sum(SIZES)) % 2


VARIANTS: list[dict[str, Any]] = [
    {"scope": "all"},
    {"scope": "classifier"},
    {"scope": "all", "memory_limit": 1e-4},
    {"scope": "all", "unbiased": True},
    {"scope": "all", "statistic": "second_moment"},
    {"scope": "all", "statistic": "mean"},
    {"scope": "classifier", "statistic": "covariance"},
    {"scope": "all", "within_classes": True},
    {"scope": "classifier", "engine": "backpack"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_at_once_is_as_later(variant: dict[str, Any]) -> None:
    net, x, y = _case()
    parameters = list(net.parameters())
    later = gradient_variance(net, x, y, SIZES, **variant)
    expected = penalty(later.variances, over_domains="sum") + later.losses.mean()
    at_once = gradient_variance(
        net, x, y, SIZES, reduce=lambda _, v: squared_distance(v), **variant
    )
    assert all(value.ndim == 0 for value in at_once.variances.values())
    found = torch.stack(list(at_once.variances.values())).sum() + at_once.losses.mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    theirs, ours = (
        torch.autograd.grad(total, parameters, materialize_grads=True)
        for total in (expected, found)
    )
    for name, a, b in zip(dict(net.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15, msg=name)


def test_reduce_is_told_the_name_and_the_statistic() -> None:
    net, x, y = _case()
    seen: dict[str, Tensor] = {}

    def reduce(name: str, v: Tensor) -> Tensor:
        seen[name] = v.detach().clone()
        return 3 * v.sum()

    found = gradient_variance(net, x, y, SIZES, scope="all", reduce=reduce)
    expected = gradient_variance(net, x, y, SIZES, scope="all").variances
    assert list(found.variances) == list(expected)
    for name, v in expected.items():
        torch.testing.assert_close(seen[name], v)
        torch.testing.assert_close(found.variances[name], 3 * v.sum())


def test_without_graph_nothing_is_differentiable() -> None:
    net, x, y = _case()
    found = gradient_variance(
        net, x, y, SIZES, scope="all", create_graph=False,
        reduce=lambda _, v: squared_distance(v),
    )  # fmt: skip
    assert not any(value.requires_grad for value in found.variances.values())
    assert found.losses.requires_grad
