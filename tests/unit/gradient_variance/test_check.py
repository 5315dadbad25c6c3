"""The check of the rules: repeated ever more rarely, for models that change over time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fishr_exp.gradient_variance import UnsupportedError, gradient_variance, penalty
from fishr_exp.gradient_variance.engines import check

SIZES = (5, 4)


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 4, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (sum(SIZES),), generator=g)


class Changing(nn.Module):
    """From call `start` on, hidden features are mixed, or computed in another order."""

    def __init__(self, start: int, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.classifier = nn.Linear(4, 6), nn.Linear(6, 3)
        self.start, self.how, self.calls = start, how, 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls < self.start:
            return self.classifier(torch.tanh(self.hidden(x)))
        if self.how == "mixed":
            h = torch.tanh(self.hidden(x))
            return self.classifier(h + h.roll(1, 0))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.calls))
        h = torch.tanh(self.hidden(x[order]))
        return self.classifier(h[order.argsort()])


def test_is_made_at_the_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    checked = check._wrong
    monkeypatch.setattr(check, "_wrong", lambda *a: made.append(True) or checked(*a))
    net = nn.Linear(4, 3).double()
    x, y = _data()
    at = []
    for call in range(1, 20):
        before = len(made)
        gradient_variance(net, x, y, SIZES, scope="all")
        if len(made) > before:
            at.append(call)
    assert at == [1, 2, 4, 8, 16]


def test_each_selection_and_shape_has_its_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    checked = check._wrong
    monkeypatch.setattr(check, "_wrong", lambda *a: calls.append(1) or checked(*a))
    net = Changing(99, "mixed")
    x, y = _data()
    gradient_variance(net, x, y, SIZES, scope="all")
    gradient_variance(net, x, y, SIZES, scope="classifier")
    gradient_variance(net, x[:-1], y[:-1], (5, 3), scope="all")
    assert len(calls) == 3


@pytest.mark.parametrize(("start", "noticed"), [(2, 2), (3, 4), (4, 4), (6, 8)])
def test_a_model_that_begins_to_mix_samples_is_refused(start: int, noticed: int) -> None:
    net = Changing(start, "mixed")
    x, y = _data()
    for _ in range(1, noticed):
        gradient_variance(net, x, y, SIZES, scope="all")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="couples samples"):
            gradient_variance(net, x, y, SIZES, scope="all")


@pytest.mark.parametrize(("start", "noticed"), [(1, 1), (2, 2), (3, 4)])
def test_a_model_that_begins_to_reorder_samples_is_done_one_by_one(
    start: int, noticed: int
) -> None:
    net, honest = Changing(start, "reordered"), Changing(99, "reordered")
    x, y = _data()
    for call in range(1, noticed + 3):
        net.calls = call - 1
        found = gradient_variance(net, x, y, SIZES, scope="all").variances
        if call >= noticed:
            expected = gradient_variance(honest, x, y, SIZES, scope="all").variances
            for name, v in expected.items():
                torch.testing.assert_close(found[name], v)


@pytest.mark.parametrize("scope", ["all", "classifier"])
def test_checking_changes_no_bit(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _data()
    results: list[list[Tensor]] = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(check, "_wrong", lambda *_: frozenset())
        net = Changing(99, "mixed")
        torch.manual_seed(1)
        for _ in range(9):
            found = gradient_variance(net, x, y, SIZES, scope=scope)
            net.zero_grad()
            (found.losses.mean() + penalty(found.variances)).backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
        results.append([*net.parameters(), *found.variances.values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16]
)
def test_rounding_errors_are_not_mistaken_for_mixed_samples(dtype: torch.dtype) -> None:
    """Of a deep network in training, of which some gradients vanish, every step is checked."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 36), torch.randint(0, 3, (32,))
    blocks = [nn.Sequential(nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(12)]
    net = nn.Sequential(nn.Linear(36, 32), *blocks, nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(100):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = gradient_variance(net, x, y, (16, 16), scope="all", create_graph=False)
        optimizer.zero_grad()
        found.losses.mean().backward()
        optimizer.step()
        (checked,) = check._checked[net].values()
        assert not checked.failed, step
        checked.calls = 1  # so that the next call checks again
