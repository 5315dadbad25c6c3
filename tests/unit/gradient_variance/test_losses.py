"""The loss against PyTorch's own, and its gradient against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.gradient_variance import CrossEntropy, gradient_variance, per_sample_losses

LOSSES = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.2),
    CrossEntropy(class_weights=[1.0, 3.0]),
    CrossEntropy(label_smoothing=0.2, class_weights=[0.5, 3.0]),
]


def _targets(n: int = 8) -> Tensor:
    return torch.arange(n) % 2


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("columns", [1, 2])
def test_gradient_at_logits_is_that_of_autograd(loss: CrossEntropy, columns: int) -> None:
    z = torch.randn(8, columns, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(z, _targets()).sum(), z)
    torch.testing.assert_close(loss.gradient_at_logits(z, _targets()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 3])
def test_half_precision_keeps_the_digits_of_small_losses(columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = torch.arange(9) % max(2, columns)
    signs = F.one_hot(y, columns) if columns > 1 else 2 * y[:, None] - 1
    classifier = nn.Linear(columns, columns)
    nn.init.eye_(classifier.weight)
    x = 8 * signs + torch.randn(9, columns)
    with torch.autocast("cpu", dtype):
        found = gradient_variance(classifier, x, y, (4, 5), scope="bias")
    z = found.logits.detach().double().requires_grad_()
    (deltas,) = torch.autograd.grad(per_sample_losses(z, y).sum(), z)
    expected = torch.stack([d.var(0, correction=0) for d in deltas.split((4, 5))])
    torch.testing.assert_close(found.variances["bias"].double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_one_logit_is_the_second_of_two(loss: CrossEntropy) -> None:
    z = torch.randn(8, 1, dtype=torch.float64)
    two = torch.cat([torch.zeros_like(z), z], 1)
    torch.testing.assert_close(loss(z, _targets()), loss(two, _targets()))


def test_is_that_of_pytorch() -> None:
    z, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3
    weights = [1.0, 2.0, 0.5]
    expected = F.cross_entropy(
        z, y, weight=torch.tensor(weights).double(), label_smoothing=0.1, reduction="none"
    )
    torch.testing.assert_close(CrossEntropy(0.1, weights)(z, y), expected)
    plain = F.cross_entropy(z, y, reduction="none")
    assert torch.equal(per_sample_losses(z, y), plain)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_closed_form_of_the_classifier(loss: CrossEntropy) -> None:
    """The same variances as from a loss whose gradient is not known in closed form."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    found, expected = (
        gradient_variance(net, x, _targets(), (4, 4), scope="2", loss=own).variances
        for own in (loss, loss.__call__)
    )
    for name, v in expected.items():
        torch.testing.assert_close(found[name], v, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_smoothing": 1.5}, r"label_smoothing=1.5: must be in \[0, 1\]"),
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
    ],
)
def test_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEntropy(**wrong)


def test_refuses_a_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"=\[.*\]: 2 weights, but there are 3 classes"):
        CrossEntropy(class_weights=[1.0, 1.0])(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
