"""Ours = BackPACK = torch.func = loop over samples, in float64, with second-order gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fishr_exp.gradient_variance import gradient_variance, penalty, per_sample_losses


class Net(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.featurizer = nn.Sequential(
            nn.Linear(4, features), nn.Tanh(), nn.Linear(features, features), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.featurizer(x))


def _problem(seed: int, sizes: list[int], features: int, classes: int) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    net = Net(features, classes).double()
    x = torch.randn(sum(sizes), 4, dtype=torch.float64)
    return net, x, torch.randint(0, max(classes, 2), (sum(sizes),))


def _func_variances(net: nn.Module, x: Tensor, y: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    def one(parameters: dict[str, Tensor], x_i: Tensor, y_i: Tensor) -> Tensor:
        logits = torch.func.functional_call(net, parameters, (x_i.unsqueeze(0),))
        return per_sample_losses(logits, y_i.unsqueeze(0)).sum()

    per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    gradients = per_sample(dict(net.named_parameters()), x, y)
    return {
        name: torch.stack([(g - g.mean(0)).square().mean(0) for g in of_all.split(sizes)])
        for name, of_all in gradients.items()
    }


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    features=st.integers(1, 14),
    classes=st.integers(1, 12),
    scope=st.sampled_from(["classifier", "all", "featurizer.0", "*.bias"]),
)
def test_native_is_the_loop(
    twin: Any, seed: int, sizes: list[int], features: int, classes: int, scope: str
) -> None:
    net, x, y = _problem(seed, sizes, features, classes)
    ours = gradient_variance(net, x, y, sizes, scope=scope).variances
    twin.assert_same(net, ours, twin.variances(net, x, y, sizes, list(ours)))


@pytest.mark.parametrize("scope", ["classifier", "all"])
@pytest.mark.parametrize("classes", [1, 3])
def test_backpack_is_the_loop(twin: Any, scope: str, classes: int) -> None:
    net, x, y = _problem(0, [5, 3], 6, classes)
    theirs = gradient_variance(net, x, y, [5, 3], scope=scope, engine="backpack").variances
    twin.assert_same(net, theirs, twin.variances(net, x, y, [5, 3], list(theirs)))


@pytest.mark.parametrize("classes", [1, 3])
def test_native_is_torch_func(twin: Any, classes: int) -> None:
    net, x, y = _problem(0, [5, 3], 6, classes)
    ours = gradient_variance(net, x, y, [5, 3], scope="all").variances
    twin.assert_same(net, ours, _func_variances(net, x, y, [5, 3]))


@pytest.mark.parametrize("classes", [1, 3])
def test_gradcheck_of_the_penalty(classes: int) -> None:
    net, x, y = _problem(0, [3, 4], 3, classes)

    def value(*parameters: Tensor) -> Tensor:
        names = [name for name, _ in net.named_parameters()]
        replaced = _with_parameters(names, parameters)
        return penalty(gradient_variance(replaced, x, y, [3, 4], scope="all").variances)

    def _with_parameters(names: list[str], tensors: tuple[Tensor, ...]) -> nn.Module:
        class Wrapped(nn.Module):
            def named_parameters(self, *_: Any, **__: Any) -> Any:
                return iter(zip(names, tensors, strict=True))

            def forward(self, x: Tensor) -> Tensor:
                return torch.func.functional_call(net, dict(zip(names, tensors, strict=True)), (x,))

        return Wrapped()

    leaves = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("classes", [1, 3, 12])
def test_float32_is_sound_where_the_mean_dwarfs_the_deviation(classes: int) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(6, classes)
    with torch.no_grad():
        classifier.weight.mul_(0.01)
    x = 1 + 1e-3 * torch.randn(400, 6)
    y = torch.zeros(400, dtype=torch.int64)

    def variance(x: Tensor) -> Tensor:
        classifier.to(x.dtype)
        return gradient_variance(classifier, x, y, (150, 250), scope="weight").variances["weight"]

    rounded = variance(x)
    exact = variance(x.double())  # of the very same numbers
    assert ((rounded - exact).abs() / exact).max() < 1e-4
