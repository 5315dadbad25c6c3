"""What has no rule: in the fastest way whose gradients, and their gradients, are the batch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import UnsupportedError, gradient_variance, penalty
from fishr_exp.gradient_variance.engines import fallback
from fishr_exp.gradient_variance.engines.scripted import holds_scripted_code

SIZES = (5, 4)


@torch.jit.script
def scripted_silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def plain_silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _calls_scripted(x: Tensor) -> Tensor:
    return scripted_silu(x)


class Net(nn.Module):
    """`slow` has no rule."""

    def __init__(self, activation: Any = plain_silu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.slow, self.classifier = nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)
        self.functions = {"activation": activation}  # where no search for scripted code looks
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.functions["activation"](self.slow(self.hidden(x))))


class ByRule(Net):
    """All parameters have rules: the batch itself is differentiated twice."""

    def __init__(self, activation: Any = scripted_silu) -> None:
        super().__init__(activation)
        del self.slow

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.functions["activation"](self.hidden(x)))


class Attribute(Net):
    def __init__(self) -> None:
        super().__init__()
        self.activation = scripted_silu

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.activation(self.slow(self.hidden(x))))


class Named(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(scripted_silu(self.slow(self.hidden(x))))


class NamedElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(_calls_scripted(self.slow(self.hidden(x))))


class Trunk(nn.Module):
    """A scripted, traced or plain trunk, whose parameters no torch function shows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        scripted: dict[str, Callable[[], Any]] = {
            "scripted": lambda: torch.jit.script(trunk),
            "traced": lambda: torch.jit.trace(trunk, torch.randn(2, 4)),
            "plain": lambda: trunk,
        }
        self.trunk, self.classifier = scripted[how](), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x))


def _data(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(SIZES), 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (sum(SIZES),), generator=generator)


def _penalty_and_gradients(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    value = penalty(gradient_variance(net, x, y, SIZES, scope="all").variances)
    return [value.detach(), *torch.autograd.grad(value, list(net.parameters()))]


def _is_same(net: nn.Module, plain: nn.Module) -> None:
    plain.load_state_dict(net.state_dict())
    for call in range(6):  # TorchScript computes in other ways once it has seen a few calls
        x, y = _data(call)
        found, expected = (_penalty_and_gradients(m, x, y) for m in (net, plain))
        scale = max(float(g.abs().max()) for g in expected[1:])
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-12 * scale


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_scripted_modules(how: str) -> None:
    _is_same(Trunk(how), Trunk("plain"))


@pytest.mark.parametrize("make", [Attribute, Named, NamedElsewhere, lambda: Net(scripted_silu)])
def test_scripted_functions(make: Callable[[], nn.Module]) -> None:
    _is_same(make(), Net())


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_scripted_code_is_found_where_it_shows() -> None:
    assert all(holds_scripted_code(net) for net in (Attribute(), Named(), NamedElsewhere()))
    assert all(holds_scripted_code(Trunk(how)) for how in ("scripted", "traced"))
    assert not holds_scripted_code(Net())
    assert not holds_scripted_code(Trunk("plain"))


def test_scripted_functions_between_layers_with_rules() -> None:
    _is_same(ByRule(), ByRule(plain_silu))


def _ways(net: nn.Module) -> list[int]:
    return [chosen.way for chosen in fallback._chosen[net].values()]


def test_hidden_scripted_code_is_found_by_what_it_computes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    net = Net(scripted_silu)
    assert not holds_scripted_code(net)
    for call in range(4):
        _penalty_and_gradients(net, *_data(call))
    assert _ways(net) == [1]
    assert caplog.text.count("gives another gradient of the penalty") == 1


def test_without_a_gradient_of_the_penalty_torch_func_is_right_for_scripted_code() -> None:
    x, y = _data(0)
    net, plain = Net(scripted_silu), Net()
    for _ in range(4):
        found = gradient_variance(net, x, y, SIZES, scope="all", create_graph=False).variances
        expected = gradient_variance(plain, x, y, SIZES, scope="all").variances
        for name, v in expected.items():
            torch.testing.assert_close(found[name], v.detach())
    assert _ways(net) == [0]


class _WrongForOneSample(torch.autograd.Function):
    """A square, whose second derivative is 0 where the batch is a single sample."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * grad * (x.detach() if len(x) == 1 else x)


def test_what_is_wrong_at_batch_size_one_runs_beside_a_copy() -> None:
    net = Net(_WrongForOneSample.apply)
    _is_same(net, Net(torch.square))
    assert _ways(net) == [2]


def test_ways_are_compared_at_the_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    probe = fallback.Probe
    monkeypatch.setattr(fallback, "Probe", lambda *a: made.append(1) or probe(*a))
    net, (x, y), at = Net(), _data(0), []
    for call in range(1, 20):
        before = len(made)
        gradient_variance(net, x, y, SIZES, scope="all")
        if len(made) > before:
            at.append(call)
    assert at == [1, 2, 4, 8, 16]


def test_comparing_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[list[Tensor]] = []
    for compared in (True, False):
        if not compared:
            monkeypatch.setattr(fallback.Probe, "disagreement", lambda *_, **__: None)
        torch.manual_seed(1)
        net = Net()
        for call in range(5):
            value = penalty(gradient_variance(net, *_data(call), SIZES, scope="all").variances)
            net.zero_grad()
            value.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
        results.append([*net.parameters(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("dtype", "late"),
    [
        (torch.float32, False),
        pytest.param(torch.float32, True, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.slow),
        (torch.bfloat16, True),
    ],
)
def test_rounding_errors_do_not_change_the_way(dtype: torch.dtype, late: bool) -> None:
    """Of a deep network, at every step of training; `late`: with losses that vanish."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 36), torch.randint(0, 3, (8,))
    blocks = [nn.Sequential(nn.LayerNorm(32), nn.PReLU(32), nn.Linear(32, 32)) for _ in range(12)]
    net = nn.Sequential(nn.Linear(36, 32), *blocks, nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    if late:
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    for step in range(20):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = gradient_variance(net, x, y, (4, 4), scope="all")
        optimizer.zero_grad()
        (found.losses.mean() + penalty(found.variances)).backward()
        optimizer.step()
        (chosen,) = fallback._chosen[net].values()
        assert chosen.way == 0, step
        chosen.calls = 1  # so that the next call compares again


class Dropped(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(self.slow(self.hidden(x)), 0.5, self.training)
        return self.classifier(h)


def test_dropout_beside_what_has_no_rule_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="draws random numbers"):
        gradient_variance(Dropped(), *_data(0), SIZES, scope="all")
    gradient_variance(Dropped().eval(), *_data(0), SIZES, scope="all")


class OnceDifferentiable(Net):
    """Has no second derivative at all."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.slow(self.hidden(x))
        return self.classifier(_OnceDifferentiable.apply(h))


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad * ctx.saved_tensors[0]


def test_what_has_no_second_derivative_says_so_where_it_is_needed() -> None:
    net = OnceDifferentiable()
    found = gradient_variance(net, *_data(0), SIZES, scope="all").variances
    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalty(found).backward()


class Permuted(nn.Module):
    """BatchNorm whose gradient comes in another layout: torch's own is wrong for one sample."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.slow, self.classifier = nn.BatchNorm2d(4), nn.PReLU(), nn.Linear(4, 3)
        nn.init.normal_(self.norm.weight)
        self.activation = activation
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(x).flatten(2).permute(0, 2, 1).contiguous())
        return self.classifier(self.activation(self.slow(y)).square().sum(1))


@pytest.mark.parametrize("activation", [plain_silu, scripted_silu])
@pytest.mark.parametrize("scope", ["all", "norm"])
def test_torch_s_wrong_batch_norm_of_one_sample_is_not_inherited(
    activation: Any, scope: str
) -> None:
    net, (_, y) = Permuted(activation), _data(0)
    x = torch.randn(len(y), 4, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    ways = (way for _, way in fallback._WAYS)
    parameters = dict(net.norm.named_parameters(prefix="norm"))
    losses = nn.functional.cross_entropy(net(x), y, reduction="none")
    expected = torch.autograd.grad(losses.sum(), list(parameters.values()))
    with fallback.TwiceDifferentiable():
        for way in ways:
            arguments = (net, x, y, parameters, _cross_entropy, False)
            for own, total in zip(way(*arguments)[0].values(), expected, strict=True):
                torch.testing.assert_close(own.sum(0), total)
    found = gradient_variance(net, x, y, SIZES, scope=scope, statistic="mean").variances
    sums = [n * found["norm.weight"][d] for d, n in enumerate(SIZES)]
    torch.testing.assert_close(sums[0] + sums[1], expected[0])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")
