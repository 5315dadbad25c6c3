"""What the package refuses is an `UnsupportedError`; the caller's own exceptions pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import (
    CrossEntropy,
    UnsupportedError,
    gradient_variance,
    penalty,
    per_sample_losses,
)

SIZES = (5, 4)
ENGINES = ["native", "backpack"]


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 4, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (sum(SIZES),), generator=g)


class Net(nn.Module):
    """`slow` has no rule. `hook` sees the hidden features [N, 6] of every forward pass."""

    def __init__(self, hook: Callable[[Tensor], None] = lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.slow, self.classifier = nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)
        self.hook = hook
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.slow(self.hidden(x))
        self.hook(h)
        return self.classifier(h)


def _raise(error: type[Exception]) -> None:
    raise error("mine")


def _always(error: type[Exception]) -> Callable[[Tensor], None]:
    return lambda _: _raise(error)


def _for_single_samples(error: type[Exception]) -> Callable[[Tensor], None]:
    return lambda h: _raise(error) if len(h) == 1 else None


ERRORS = [ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("engine", "scope", "hook"),
    [
        ("native", "classifier", _always),
        ("native", "all", _always),
        ("native", "slow", _always),
        ("native", "slow", _for_single_samples),
        ("backpack", "classifier", _always),
        ("backpack", "all", _always),
    ],
)
def test_exceptions_of_the_network_pass_through(
    error: type[Exception], engine: Any, scope: str, hook: Any
) -> None:
    x, y = _data()
    with pytest.raises(error, match="mine") as caught:
        gradient_variance(Net(hook(error)), x, y, SIZES, scope=scope, engine=engine)
    assert caught.type is error
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].name == "_raise"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("engine", "scope", "hook"),
    [
        ("native", "classifier", _always),
        ("native", "all", _always),
        ("native", "slow", _always),
        ("native", "slow", _for_single_samples),
        ("backpack", "classifier", _always),
    ],
)
def test_exceptions_of_the_loss_pass_through(
    error: type[Exception], engine: Any, scope: str, hook: Any
) -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        hook(error)(logits)
        return per_sample_losses(logits, targets)

    x, y = _data()
    with pytest.raises(error, match="mine") as caught:
        gradient_variance(Net(), x, y, SIZES, scope=scope, engine=engine, loss=loss)
    assert caught.type is error


@pytest.mark.parametrize("engine", ENGINES)
def test_exceptions_in_the_backward_pass_pass_through(engine: Any) -> None:
    def hook(h: Tensor) -> None:
        if h.requires_grad:
            h.register_hook(lambda _: _raise(AttributeError))

    x, y = _data()
    with pytest.raises(AttributeError, match="mine"):
        gradient_variance(Net(hook), x, y, SIZES, scope=["hidden", "classifier"], engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_exceptions_of_reduce_pass_through(engine: Any) -> None:
    x, y = _data()

    def reduce(name: str, v: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        gradient_variance(Net(), x, y, SIZES, scope="classifier", engine=engine, reduce=reduce)
    assert caught.type is ValueError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (1, 8)}, r"sizes\[0\]=1"),
        ({"sizes": (4, 4)}, "sum to 8"),
        ({"scope": "head"}, "scope='head' selects no trainable parameter"),
        ({"scope": []}, "names no parameter"),
        ({"engine": "jax"}, "engine='jax'"),
        ({"statistic": "median"}, "statistic='median'"),
        ({"batch_statistics": "running"}, "batch_statistics='running': expected one of refuse"),
        ({"memory_limit": 0}, "memory_limit=0"),
        ({"all_ranks": True, "within_classes": True}, "all_ranks"),
        ({"loss": nn.CrossEntropyLoss()}, r"shape \(\) for 9 samples.*reduction=\"none\""),
        (
            {"loss": nn.CrossEntropyLoss(), "engine": "backpack", "scope": "classifier"},
            r"shape \(\) for 9 samples",
        ),
        ({"loss": CrossEntropy(class_weights=[1.0, 1.0])}, ": 2 weights"),
        ({"engine": "backpack", "scope": "slow"}, "engine='backpack'"),
    ],
    ids=str,
)
def test_refused_arguments(wrong: dict[str, Any], message: str) -> None:
    x, y = _data()
    arguments = {"sizes": SIZES, "scope": "all", **wrong}
    with pytest.raises(UnsupportedError, match=message):
        gradient_variance(Net(), x, y, **arguments)


class Mixing(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class InPlace(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y += x
        return y


@pytest.mark.filterwarnings("ignore:Extension saving")
@pytest.mark.parametrize(
    ("net", "message", "options"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), "BatchNorm in training mode", {}),
        (
            nn.Sequential(nn.BatchNorm1d(4), nn.PReLU(4), nn.Linear(4, 3)),
            "each sample on its own",
            {"scope": "1"},
        ),
        (
            nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
            "BatchNorm in training mode",
            {"engine": "backpack"},
        ),
        (Mixing(nn.Linear(4, 3)), "couples samples", {}),
        (Twice(), "BackPACK does not support this model", {"engine": "backpack"}),
        (InPlace(), "BackPACK does not support this model", {"engine": "backpack"}),
        (
            nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)),
            "BackPACK has no rule",
            {"engine": "backpack"},
        ),
        (
            nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Flatten()),
            "covariance",
            {"statistic": "covariance"},
        ),
    ],
)
def test_refused_networks(net: nn.Module, message: str, options: dict[str, Any]) -> None:
    x, y = _data()
    with pytest.raises(UnsupportedError, match=message):
        gradient_variance(net.double(), x, y, SIZES, **{"scope": "all", **options})


@pytest.mark.parametrize(
    "refused",
    [
        lambda: CrossEntropy(label_smoothing=2),
        lambda: CrossEntropy(class_weights=[-1.0]),
        lambda: CrossEntropy()(torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
        lambda: penalty({}),
        lambda: penalty({"w": torch.zeros(2, 1)}, over_parameters="max"),  # type: ignore[arg-type]
        lambda: penalty({"w": torch.zeros(2, 1)}, over_domains="max"),  # type: ignore[arg-type]
    ],
)
def test_refused_losses_and_penalties(refused: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedError):
        refused()


def test_is_a_value_error() -> None:
    assert issubclass(UnsupportedError, ValueError)
