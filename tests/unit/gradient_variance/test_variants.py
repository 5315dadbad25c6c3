from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import (
    gradient_variance,
    penalty,
    per_sample_losses,
    squared_distance,
)

SIZES = (6, 7)
ENGINES = ["native", "backpack"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 4, generator=g, dtype=torch.float64)
    return x, torch.tensor([0, 1, 0, 1, 0, 2, 1, 0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("engine", ENGINES)
def test_covariance_is_that_of_the_gradients(net: nn.Module, engine: Any) -> None:
    x, y = _data()
    found = gradient_variance(
        net, x, y, SIZES, scope="2", statistic="covariance", unbiased=True, engine=engine
    ).variances
    rows = []
    for x_i, y_i in zip(x, y, strict=True):
        loss = per_sample_losses(net(x_i[None]), y_i[None]).sum()
        rows.append(torch.autograd.grad(loss, net[2].weight)[0].flatten())
    for d, g in enumerate(torch.stack(rows).split(SIZES)):
        torch.testing.assert_close(found["2.weight"][d], g.t().cov())


def test_diagonal_of_the_covariance_is_the_variance(net: nn.Module) -> None:
    x, y = _data()
    full = gradient_variance(net, x, y, SIZES, scope="all", statistic="covariance").variances
    for name, v in gradient_variance(net, x, y, SIZES, scope="all").variances.items():
        torch.testing.assert_close(full[name].diagonal(dim1=1, dim2=2), v.flatten(1))
    assert penalty(full).requires_grad


def test_covariance_of_a_convolution_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(ValueError, match="covariance"):
        gradient_variance(
            net, torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), (2, 2), scope="all",
            statistic="covariance",
        )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_within_classes(net: nn.Module, engine: Any) -> None:
    x, y = _data()
    found = gradient_variance(net, x, y, SIZES, scope="all", within_classes=True, engine=engine)
    torch.testing.assert_close(found.logits, net(x))
    torch.testing.assert_close(found.losses, per_sample_losses(net(x), y))
    # Class 2 has one sample in the first domain.
    assert {name[-3:] for name in found.variances} == {"[0]", "[1]"}
    for c in (0, 1):
        parts = [
            (a[b == c], b[b == c]) for a, b in zip(x.split(SIZES), y.split(SIZES), strict=True)
        ]
        own_x, own_y = (torch.cat(column) for column in zip(*parts, strict=True))
        sizes = [len(b) for _, b in parts]
        expected = gradient_variance(net, own_x, own_y, sizes, scope="all").variances
        for name, v in expected.items():
            torch.testing.assert_close(found.variances[f"{name}[{c}]"], v)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reduce", [None, lambda _, v: squared_distance(v)])
def test_no_class_with_two_samples_in_every_domain_has_no_variance(
    net: nn.Module, engine: Any, reduce: Any
) -> None:
    x, y = _data()[0][:4], torch.tensor([0, 0, 1, 1])
    found = gradient_variance(
        net, x, y, (2, 2), scope="all", within_classes=True, engine=engine, reduce=reduce
    )
    torch.testing.assert_close(found.losses, per_sample_losses(net(x), y))
    for name, parameter in net.named_parameters():
        shape = () if reduce else (2, *parameter.shape)
        assert torch.equal(found.variances[name], parameter.new_zeros(shape))
