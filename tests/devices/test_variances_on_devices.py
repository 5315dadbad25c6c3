"""Variances, penalty and its gradients on a device are the CPU's, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.gradient_variance import gradient_variance, penalty
from fishr_exp.models.mlp import mlp
from fishr_exp.trainers.fishr import Fishr

SIZES = (5, 4, 6)


class _Residual(nn.Module):
    """Two convolutions with BatchNorm around which the input goes, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.norm_again = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_again(self.second(F.relu(self.norm(self.first(x))))))


def _resnet() -> Model:
    stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    body = nn.Sequential(stem, _Residual(), _Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Model(body, nn.Linear(4, 3)).eval()


def _cnn() -> Model:
    """As `mnist_cnn`, with fewer channels and on smaller images, where a test takes no time."""
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.GroupNorm(2, 6),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.GroupNorm(2, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Model(body, nn.Linear(8, 3))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: mlp(input_shape=(2, 5, 5), num_classes=3, hidden=8, hidden_layers=2,
                        single_logit=False), (2, 5, 5)),
    "cnn": (_cnn, (1, 10, 10)),
    "resnet": (_resnet, (3, 12, 12)),
}  # fmt: skip


def made(network: str) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    n = sum(SIZES)
    x = torch.randn(n, *shape, dtype=torch.float64)
    return build().double(), Batch(x, torch.randint(3, (n,)), SIZES)


def moved(model: Model, batch: Batch, device: torch.device) -> tuple[Model, Batch]:
    return copy.deepcopy(model).to(device), Batch(batch.x.to(device), batch.y.to(device), SIZES)


def assert_same(there: Tensor, here: Tensor) -> None:
    scale = float(here.detach().abs().max())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-10 * scale + 1e-18)


@pytest.mark.parametrize("limit", [128.0, 0.01])  # MiB; the small one takes samples in chunks
@pytest.mark.parametrize("scope", ["classifier", "all"])
@pytest.mark.parametrize("network", NETWORKS)
def test_variances_and_the_gradients_of_the_penalty(
    network: str, scope: str, limit: float, device: torch.device
) -> None:
    model, batch = made(network)

    def measured(model: Model, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        found = gradient_variance(
            model, batch.x, batch.y, batch.sizes, scope=scope, memory_limit=limit
        )
        gradients = torch.autograd.grad(
            penalty(found.variances), [*model.parameters()], materialize_grads=True
        )
        return found.variances, [*gradients]

    variances, gradients = measured(model, batch)
    there, gradients_there = measured(*moved(model, batch, device))
    assert there.keys() == variances.keys()
    for name, variance in variances.items():
        assert there[name].device.type == device.type
        assert variance.abs().max() > 0
        assert_same(there[name], variance)
    for on_device, on_cpu in zip(gradients_there, gradients, strict=True):
        assert_same(on_device, on_cpu)


@pytest.mark.parametrize("scope", ["classifier", "all"])
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_of_fishr_with_a_moving_average(
    network: str, scope: str, device: torch.device
) -> None:
    model, batch = made(network)

    def objectives(model: Model, batch: Batch) -> list[Tensor]:
        fishr, totals = Fishr(10.0, scope=scope, ema_decay=0.9), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            objective = fishr.objective(model, batch, step)
            objective.total.backward()
            optimizer.step()
            totals.append(objective.total.detach())
        return totals

    there = objectives(*moved(model, batch, device))
    for on_device, on_cpu in zip(there, objectives(model, batch), strict=True):
        assert_same(on_device, on_cpu)
