"""Random shapes and settings against the loop over samples, in float64."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fishr_exp.gradient_variance import gradient_variance

random = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**31)
some_sizes = st.lists(st.integers(2, 5), min_size=1, max_size=3)


class Net(nn.Module):
    def __init__(self, first: nn.Module, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer, self.classifier = first, layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(torch.tanh(self.first(x))))
        return self.classifier(y.flatten(1))


def _check(twin: Any, first: nn.Module, layer: nn.Module, x: Tensor, sizes: list[int]) -> None:
    width = layer(first(x)).flatten(1).shape[1]
    net = Net(first, layer, width).double()
    x, y = x.double(), torch.randint(0, 3, (len(x),))
    ours = gradient_variance(net, x, y, sizes, scope="all").variances
    twin.assert_same(net, ours, twin.variances(net, x, y, sizes, list(ours)))


@random
@given(
    seed=seeds,
    sizes=some_sizes,
    side=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_convolutions(
    twin: Any,
    seed: int,
    sizes: list[int],
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), 2, *side)
    layer = nn.Conv2d(4, 2 * groups, kernel, stride, padding, dilation, groups)
    if any(s + 2 * padding < dilation * (k - 1) + 1 for s, k in zip(side, kernel, strict=True)):
        return
    _check(twin, nn.Conv2d(2, 4, 1), layer, x, sizes)


@random
@given(
    seed=seeds,
    sizes=some_sizes,
    leading=st.lists(st.integers(1, 4), max_size=2),
    features=st.integers(1, 12),
    outputs=st.integers(1, 12),
    bias=st.booleans(),
)
def test_linear_layers_with_leading_dimensions(
    twin: Any,
    seed: int,
    sizes: list[int],
    leading: list[int],
    features: int,
    outputs: int,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), *leading, 3)
    _check(twin, nn.Linear(3, features), nn.Linear(features, outputs, bias), x, sizes)


@random
@given(
    seed=seeds,
    sizes=some_sizes,
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    side=st.integers(2, 4),
)
def test_group_norms(
    twin: Any, seed: int, sizes: list[int], groups: int, each: int, side: int
) -> None:
    torch.manual_seed(seed)
    channels = groups * each
    x = torch.randn(sum(sizes), 2, side, side)
    _check(twin, nn.Conv2d(2, channels, 1), nn.GroupNorm(groups, channels), x, sizes)
