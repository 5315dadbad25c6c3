"""Half precision, memory layout and compiler change results by no more than is stated."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.models.mnist_cnn import mnist_cnn
from fishr_exp.trainers.erm import Erm
from fishr_exp.trainers.fishr import Fishr
from fishr_exp.trainers.irm import Irm
from fishr_exp.training.precision import autocast, check_precision, compile_featurizer
from fishr_exp.training.step import make_players, optimizer_step

CPU = torch.device("cpu")
METHODS = {
    "erm": Erm,
    "irm": lambda: Irm(1.0),
    "fishr classifier": lambda: Fishr(1.0),
    "fishr all": lambda: Fishr(0.1, scope="all"),
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return mnist_cnn(input_shape=(1, 28, 28), num_classes=10)


@pytest.fixture(scope="module")
def batch():
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 28, 28, generator=stream)
    return Batch(x, torch.randint(10, (24,), generator=stream), (8, 8, 8))


def step(method, network, batch, precision="fp32"):
    """Make a step; return its logs, and the gradient that it left."""
    players = make_players(method, network, functools.partial(torch.optim.SGD, lr=1e-3))
    logs = optimizer_step(method, network, players, batch, 0, autocast(precision, CPU))
    gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
    return {name: float(value) for name, value in logs.items()}, gradient


def compare(ours, exact, tolerance):
    logs, gradient = ours
    assert logs == pytest.approx(exact[0], rel=tolerance)
    assert (gradient - exact[1]).norm() < 2 * tolerance * exact[1].norm()


@pytest.mark.parametrize("name", METHODS)
def test_channels_last_changes_last_digits_only(network, batch, name):
    exact = step(METHODS[name](), copy.deepcopy(network), batch)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    convolution = next(m for m in other.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    assert not convolution.weight.is_contiguous()
    compare(step(METHODS[name](), other, batch), exact, 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_bf16_is_within_five_percent(network, batch, name):
    exact = step(METHODS[name](), copy.deepcopy(network), batch)
    half = step(METHODS[name](), copy.deepcopy(network), batch, "bf16")
    assert half[0] != exact[0]
    assert half[0]["risk"] == pytest.approx(exact[0]["risk"], rel=0.01)
    compare(half, exact, 0.05)


def test_bf16_leaves_weights_and_gradients_in_float32(network, batch):
    other = copy.deepcopy(network)
    step(Fishr(1.0), other, batch, "bf16")
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in other.parameters()} == {torch.float32}


def test_bf16_reaches_the_forward_pass_only(network):
    with autocast("bf16", CPU)():
        assert network(torch.zeros(2, 1, 28, 28)).dtype == torch.bfloat16
    with autocast("fp32", CPU)():
        assert network(torch.zeros(2, 1, 28, 28)).dtype == torch.float32


def test_no_other_precision():
    with pytest.raises(ConfigError, match=r"precision=fp16: choose from fp32, bf16"):
        check_precision("fp16", Erm())


def test_no_half_precision_for_backpack():
    with pytest.raises(ConfigError, match=r"precision=bf16: BackPACK .*engine=native"):
        check_precision("bf16", Fishr(1.0, engine="backpack"))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("erm", "aot_eager"),  # all of the compiler but the code that it writes
        ("irm", "aot_eager"),
        ("fishr classifier", "aot_eager"),
        pytest.param(
            "fishr classifier", "inductor", marks=pytest.mark.slow
        ),  # needs a C++ compiler
    ],
)
def test_a_compiled_featurizer_changes_last_digits_only(network, batch, name, backend):
    exact = step(METHODS[name](), copy.deepcopy(network), batch)
    other, method = copy.deepcopy(network), METHODS[name]()
    names = list(other.state_dict())
    compile_featurizer(other, method, backend)
    assert list(other.state_dict()) == names  # a checkpoint does not depend on it
    compare(step(method, other, batch), exact, 1e-3)
    copied = copy.deepcopy(other)  # as the diagnostics do: its weights are its own
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert not copied(batch.x).any()


def test_the_featurizer_that_runs_is_the_compiled_one(network, batch):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    other = copy.deepcopy(network)
    compile_featurizer(other, Erm(), backend)
    other(batch.x)
    assert len(graphs) == 1


def test_a_compiled_featurizer_is_not_differentiated_twice(network):
    with pytest.raises(ConfigError, match=r"compile=true: trainer\.scope=all needs second"):
        compile_featurizer(copy.deepcopy(network), Fishr(1.0, scope="all"))


class Depthwise(nn.Module):
    """The shapes of mobile networks: with and without a stride, filters of 3×3 and 5×5."""

    def __init__(self):
        super().__init__()
        deep = [
            nn.Conv2d(8, 8, k, s, k // 2, groups=8) for k, s in ((3, 1), (3, 2), (5, 1), (5, 2))
        ]
        between = [layer for d in deep for layer in (d, nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.Tanh())]
        self.all = nn.Sequential(nn.Conv2d(1, 8, 3), *between, nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.all(x).flatten(1)


@pytest.mark.parametrize("name", METHODS)
def test_bf16_with_depthwise_convolutions_is_within_five_percent(batch, name):
    torch.manual_seed(0)
    network = Model(Depthwise(), nn.Linear(8, 10))
    exact = step(METHODS[name](), copy.deepcopy(network), batch)
    compare(step(METHODS[name](), copy.deepcopy(network), batch, "bf16"), exact, 0.05)


def convolution(channels=8, out=8, groups=8):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, out, 5, stride=2, padding=2, groups=groups)
    return layer, torch.randn(4, channels, 12, 12).bfloat16().requires_grad_()


def gradients(layer, x, context):
    with context():
        y = layer(x if torch.is_autocast_enabled("cpu") else x.float())
    cotangent = torch.linspace(-1, 1, y.numel()).view_as(y).bfloat16().to(y.dtype)
    return (y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], cotangent))


def test_a_depthwise_convolution_is_that_of_float32_rounded():
    layer, x = convolution()
    y, *ours = gradients(layer, x, autocast("bf16", CPU))
    exact, *twins = gradients(layer, x, autocast("fp32", CPU))
    assert [t.dtype for t in (y, *ours)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert torch.equal(y, exact.bfloat16())
    assert all(map(torch.equal, ours, twins))


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 2), (1, 1, 1), (1, 8, 1)])
def test_other_convolutions_are_autocasts_own(shape):
    layer, x = convolution(*shape)
    plain = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    ours, twin = (gradients(layer, x, c) for c in (autocast("bf16", CPU), plain))
    assert all(map(torch.equal, ours, twin))


def test_where_autocast_is_off_a_depthwise_convolution_keeps_its_type():
    layer, x = convolution()
    with autocast("bf16", CPU)(), torch.autocast("cpu", enabled=False):
        assert layer(x.float()).dtype == torch.float32
        assert layer.double()(x.double()).dtype == torch.float64
    with autocast("bf16", CPU)():
        assert (
            torch.nn.functional.conv2d(
                input=x.float(), weight=torch.randn(8, 1, 3, 3), groups=8
            ).dtype
            == torch.bfloat16
        )
