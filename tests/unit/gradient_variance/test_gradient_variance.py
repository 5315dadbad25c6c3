from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import GradientVariance, gradient_variance, penalty

ENGINES = ["native", "backpack"]
SIZES = (4, 6, 3)


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.featurizer = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU())
        self.classifier = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.featurizer(x))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def _data(sizes: tuple[int, ...] = SIZES, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 5, generator=g, dtype=torch.float64)
    return x, torch.randint(0, classes, (sum(sizes),), generator=g)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scope", ["classifier", "all"])
def test_identical_domains_have_no_penalty(net: Net, engine: str, scope: str) -> None:
    x, y = _data((4,))
    found = gradient_variance(
        net, x.repeat(3, 1), y.repeat(3), (4, 4, 4), scope=scope, engine=engine
    )
    assert penalty(found.variances).item() == pytest.approx(0, abs=1e-30)
    assert all(v.max() > 0 for v in found.variances.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_one_domain_has_no_penalty(net: Net, engine: str) -> None:
    x, y = _data((8,))
    found = gradient_variance(net, x, y, (8,), engine=engine)
    assert penalty(found.variances).item() == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_and_risk(net: Net, engine: str) -> None:
    x, y = _data()
    found = gradient_variance(net, x, y, SIZES, scope="all", engine=engine)
    assert {n: v.shape[1:] for n, v in found.variances.items()} == {
        n: p.shape for n, p in net.named_parameters()
    }
    assert all(len(v) == len(SIZES) for v in found.variances.values())
    torch.testing.assert_close(found.logits, net(x))
    torch.testing.assert_close(
        found.losses, nn.functional.cross_entropy(net(x), y, reduction="none")
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("create_graph", [True, False])
def test_grad_is_not_touched(net: Net, engine: str, create_graph: bool) -> None:
    net.classifier.bias.grad = torch.ones(3, dtype=torch.float64)
    x, y = _data()
    gradient_variance(net, x, y, SIZES, scope="all", engine=engine, create_graph=create_graph)
    assert net.classifier.bias.grad.tolist() == [1, 1, 1]
    assert all(p.grad is None for n, p in net.named_parameters() if n != "classifier.bias")


@pytest.mark.parametrize("engine", ENGINES)
def test_without_graph_variances_are_constants_and_the_risk_is_not(net: Net, engine: str) -> None:
    x, y = _data()
    found = gradient_variance(net, x, y, SIZES, scope="all", engine=engine, create_graph=False)
    with_graph = gradient_variance(net, x, y, SIZES, scope="all", engine=engine)
    for name, v in found.variances.items():
        assert not v.requires_grad
        torch.testing.assert_close(v, with_graph.variances[name].detach())
    found.losses.mean().backward()
    ours = [p.grad for p in net.parameters()]
    plain = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
    torch.testing.assert_close(ours, list(plain))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_scaling_the_loss_scales_variances_squared(net: Net, scale: float) -> None:
    x, y = _data()

    def scaled(logits: Tensor, targets: Tensor) -> Tensor:
        return scale * nn.functional.cross_entropy(logits, targets, reduction="none")

    one = gradient_variance(net, x, y, SIZES, scope="all")
    other = gradient_variance(net, x, y, SIZES, scope="all", loss=scaled)
    for name, v in one.variances.items():
        torch.testing.assert_close(other.variances[name], scale**2 * v)
    torch.testing.assert_close(penalty(other.variances), scale**4 * penalty(one.variances))


def test_order_of_samples_and_domains_does_not_matter(net: Net) -> None:
    x, y = _data()
    xs, ys = list(x.split(SIZES)), list(y.split(SIZES))
    swapped = [2, 0, 1]
    x2 = torch.cat([xs[d].flip(0) for d in swapped])
    y2 = torch.cat([ys[d].flip(0) for d in swapped])
    one = gradient_variance(net, x, y, SIZES, scope="all")
    other = gradient_variance(net, x2, y2, [SIZES[d] for d in swapped], scope="all")
    for name, v in one.variances.items():
        torch.testing.assert_close(other.variances[name], v[swapped])
    torch.testing.assert_close(penalty(other.variances), penalty(one.variances))


def test_conventions_of_the_penalty() -> None:
    v = {"w": torch.tensor([[1.0, 2.0], [3.0, 6.0]]), "b": torch.tensor([[0.0], [2.0]])}
    # Distances to the mean are 1, 2 and 1 in both domains: 6 each.
    assert penalty(v).item() == 6
    assert penalty(v, over_domains="sum").item() == 12
    assert penalty(v, over_parameters="mean").item() == 2
    with pytest.raises(ValueError, match="over_domains='both'"):
        penalty(v, over_domains="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        penalty({})


def test_penalty_is_twice_differentiable() -> None:
    v = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: penalty({"w": v}), (v,))
    assert torch.autograd.gradgradcheck(lambda v: penalty({"w": v}), (v,))


def test_two_domains_summed_is_half_the_squared_difference(net: Net) -> None:
    x, y = _data((5, 5))
    v = gradient_variance(net, x, y, (5, 5)).variances
    half = sum(((w[0] - w[1]) ** 2).sum() for w in v.values()) / 2
    torch.testing.assert_close(penalty(v, over_domains="sum"), half)


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("classifier", ["classifier.weight", "classifier.bias"]),
        ("classifier.bias", ["classifier.bias"]),
        ("*.bias", ["featurizer.0.bias", "featurizer.2.bias", "classifier.bias"]),
        (
            ["featurizer.2", "classifier.bias"],
            ["featurizer.2.weight", "featurizer.2.bias", "classifier.bias"],
        ),
    ],
)
def test_scope_selects_by_name_or_module(
    net: Net, scope: str | list[str], names: list[str]
) -> None:
    x, y = _data()
    assert list(gradient_variance(net, x, y, SIZES, scope=scope).variances) == names


def test_frozen_parameters_are_left_out(net: Net) -> None:
    net.featurizer[0].requires_grad_(False)
    x, y = _data()
    names = gradient_variance(net, x, y, SIZES, scope="all").variances
    assert "featurizer.0.weight" not in names
    assert "featurizer.2.weight" in names


@pytest.mark.parametrize(
    ("sizes", "scope", "message"),
    [
        ((1, 12), "all", r"sizes\[0\]=1"),
        ((4, 4), "all", "sum to 8"),
        ((), "all", "sum to 0"),
        (SIZES, "head", "classifier.weight"),
    ],
)
def test_wrong_input_is_named(net: Net, sizes: tuple[int, ...], scope: str, message: str) -> None:
    x, y = _data()
    with pytest.raises(ValueError, match=message):
        gradient_variance(net, x, y, sizes, scope=scope)


def test_unknown_engine_is_named(net: Net) -> None:
    x, y = _data()
    with pytest.raises(ValueError, match="engine='jax'"):
        gradient_variance(net, x, y, SIZES, engine="jax")  # type: ignore[arg-type]


def _live_tensors() -> int:
    for _ in range(3):  # one pass leaves the graphs of other tests' exceptions
        gc.collect()
    return sum(isinstance(o, Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind(net: Net, engine: str) -> None:
    x, y = _data()
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> GradientVariance:
        found = gradient_variance(net, x, y, SIZES, scope="all", engine=engine)
        optimizer.zero_grad()
        (found.losses.mean() + penalty(found.variances)).backward()
        optimizer.step()
        return found

    step()
    attributes = set(vars(net.classifier)) | set(vars(net.classifier.weight))
    before = _live_tensors()
    for _ in range(50):
        step()
    assert _live_tensors() == before
    assert set(vars(net.classifier)) | set(vars(net.classifier.weight)) == attributes
    assert not net.classifier._forward_hooks
    assert not net.classifier._backward_hooks


def test_backpack_refuses_what_it_cannot_see() -> None:
    layer = nn.Linear(5, 5).double()
    twice = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(5, 3).double())
    x, y = _data()
    with pytest.raises(ValueError, match="BackPACK"):
        gradient_variance(twice, x, y, SIZES, scope="all", engine="backpack")


def test_backpack_refuses_what_it_has_no_rule_for() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)).double()
    x, y = _data()
    with pytest.warns(UserWarning, match="GroupNorm"), pytest.raises(ValueError, match="no rule"):
        gradient_variance(net, x, y, SIZES, scope="all", engine="backpack")


def test_backpack_refuses_additions_in_place() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y += x
            return self.b(y)

    x, y = _data()
    with pytest.raises(ValueError, match="BackPACK does not support this model"):
        gradient_variance(Residual().double(), x, y, SIZES, scope="all", engine="backpack")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_parameter_that_takes_no_part_has_no_variance(net: Net, engine: str) -> None:
    net.spare = nn.Linear(2, 2).double()
    x, y = _data()
    found = gradient_variance(net, x, y, SIZES, scope="all", engine=engine)
    assert found.variances["spare.weight"].tolist() == [[[0, 0], [0, 0]]] * 3
