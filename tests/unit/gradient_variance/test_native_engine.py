from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import gradient_variance, penalty, per_sample_losses
from fishr_exp.gradient_variance.engines.recorder import _broadcast

SIZES = (5, 4)


def _data(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), *shape, generator=g, dtype=dtype)
    return x, torch.randint(0, 3, (sum(SIZES),), generator=g)


def _normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("engine", ["native", "backpack"])
@pytest.mark.parametrize("scope", ["all", "0.bias", "1.weight"])
def test_batch_statistics_behind_a_selected_parameter_are_refused(scope: str, engine: str) -> None:
    x, y = _data(4)
    with pytest.raises(ValueError, match="BatchNorm in training mode"):
        gradient_variance(_normed(), x, y, SIZES, scope=scope, engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["native", "backpack"])
def test_batch_statistics_before_the_selected_parameters_are_fine(engine: str) -> None:
    x, y = _data(4)
    found = gradient_variance(_normed(), x, y, SIZES, scope="3", engine=engine).variances  # type: ignore[arg-type]
    features = _normed()[:3](x).detach()
    expected = gradient_variance(_normed()[3], features, y, SIZES, scope="all").variances
    torch.testing.assert_close(found["3.weight"], expected["weight"])


def test_batch_statistics_as_constants_when_asked_for() -> None:
    x, y = _data(4)
    net = _normed()
    found = gradient_variance(
        net, x, y, SIZES, scope="0.bias", batch_statistics="constant"
    ).variances["0.bias"]
    hidden = net[0](x).detach().requires_grad_()
    net[1].reset_running_stats()
    (delta,) = torch.autograd.grad(per_sample_losses(net[1:](hidden), y).sum(), hidden)
    parts = [d.var(0, unbiased=False) for d in delta.split(SIZES)]
    torch.testing.assert_close(found, torch.stack(parts))


def test_running_statistics_move_once_a_call() -> None:
    x, y = _data(4)
    net = _normed()
    gradient_variance(net, x, y, SIZES, scope="3")
    gradient_variance(net, x, y, SIZES, scope="0", batch_statistics="constant")
    assert net[1].num_batches_tracked.item() == 2
    plain = _normed()
    plain(x), plain(x)
    torch.testing.assert_close(net[1].running_var, plain[1].running_var)


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return z - z.mean(0)


def test_samples_coupled_by_hand_are_refused() -> None:
    x, y = _data(4)
    with pytest.raises(ValueError, match="couples samples"):
        gradient_variance(Coupled().double(), x, y, SIZES, scope="all")


def test_dropout_is_fine_where_every_layer_has_a_rule() -> None:
    x, y = _data(4)
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    torch.manual_seed(1)
    found = gradient_variance(net, x, y, SIZES, scope="2")
    torch.manual_seed(1)
    features = net[1](net[0](x))
    expected = gradient_variance(net[2], features, y, SIZES, scope="all").variances
    torch.testing.assert_close(found.variances["2.weight"], expected["weight"])


def test_statistics_belong_together() -> None:
    x, y = _data(4)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    of = {
        s: gradient_variance(net, x, y, SIZES, scope="all", statistic=s).variances
        for s in ("variance", "second_moment", "mean")
    }
    unbiased = gradient_variance(net, x, y, SIZES, scope="all", unbiased=True).variances
    for name, v in of["variance"].items():
        torch.testing.assert_close(of["second_moment"][name], v + of["mean"][name] ** 2)
        torch.testing.assert_close(unbiased[name][0], v[0] * 5 / 4)
        torch.testing.assert_close(unbiased[name][1], v[1] * 4 / 3)
    means = torch.stack(
        [
            per_sample_losses(net(a), b).mean()
            for a, b in zip(x.split(SIZES), y.split(SIZES), strict=True)
        ]
    )
    for d, mean in enumerate(means):
        grads = torch.autograd.grad(mean, list(net.parameters()), retain_graph=True)
        for name, grad in zip(of["mean"], grads, strict=True):
            torch.testing.assert_close(of["mean"][name][d], grad)
    with pytest.raises(ValueError, match="statistic='median'"):
        gradient_variance(net, x, y, SIZES, scope="all", statistic="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("statistic", ["mean", "second_moment"])
def test_gradients_of_the_other_statistics(statistic: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 10), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(10, 3)).double()
    x, y = _data(1, 8, 8)

    def value(x: Tensor) -> Tensor:
        found = gradient_variance(net, x, y, SIZES, scope="all", statistic=statistic)  # type: ignore[arg-type]
        return penalty(found.variances)

    assert torch.autograd.gradcheck(value, (x.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["all", "5"])
def test_autocast_gives_float32_close_to_full_precision(dtype: torch.dtype, scope: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(0)]
    net = nn.Sequential(*layers, nn.Linear(72, 3))
    x, y = _data(1, 8, 8, dtype=torch.float32)
    exact = gradient_variance(net, x, y, SIZES, scope=scope).variances
    with torch.autocast("cpu", dtype):
        found = gradient_variance(net, x, y, SIZES, scope=scope).variances
        penalty(found).backward()
    for name, v in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - v).norm() < 0.1 * v.norm()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_memory_limit_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 12), nn.Linear(12, 3))
    net.double()
    x, y = _data(1, 8, 8)
    one = gradient_variance(net, x, y, SIZES, scope="all").variances
    other = gradient_variance(net, x, y, SIZES, scope="all", memory_limit=1e-6).variances
    for name, v in one.items():
        torch.testing.assert_close(other[name], v)


def test_float32_convolutions_are_sound_where_the_mean_dwarfs_the_deviation() -> None:
    torch.manual_seed(0)
    for size in (8, 4):  # by the library's kernels, and by matrix products
        layers = [nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * (size - 2) ** 2, 3)]
        net = nn.Sequential(*layers)
        x = 1 + 1e-3 * (size - 2) * torch.randn(40, 1, size, size)  # summed over positions
        y = torch.zeros(40, dtype=torch.int64)
        rounded, exact = (
            gradient_variance(net.to(t), x.to(t), y, (15, 25), scope="0.weight", create_graph=False)
            for t in (torch.float32, torch.float64)
        )
        v, w = rounded.variances["0.weight"], exact.variances["0.weight"]
        assert ((v - w).abs() / w).max() < 1e-4


def test_shapes_are_broadcast_as_torch_does() -> None:
    sizes = [shape for n in range(4) for shape in itertools.product((0, 1, 2, 3), repeat=n)]
    for one, other in itertools.product(sizes, repeat=2):
        try:
            expected = tuple(torch.broadcast_shapes(one, other))
        except RuntimeError:
            expected = ()
        assert _broadcast([one, other]) == expected, (one, other)
    assert _broadcast([(3, 1, 1), (2, 1), (5,)]) == tuple(
        torch.broadcast_shapes((3, 1, 1), (2, 1), 5)
    )
    assert _broadcast([]) == ()
