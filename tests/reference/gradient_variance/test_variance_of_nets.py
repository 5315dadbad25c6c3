"""Whole networks of torchvision, over all parameters, against the loop over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.gradient_variance import gradient_variance


class _Hardsigmoid(nn.Module):
    """With a second derivative, which torch's own has not."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _twice_differentiable(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.Hardsigmoid):
            setattr(model, name, _Hardsigmoid())
        else:
            _twice_differentiable(child)
    return model


def _check(twin: Any, make: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    ours = gradient_variance(model, x, y, (2, 2), scope="all").variances
    assert list(ours) == [name for name, _ in model.named_parameters()]
    _twice_differentiable(model)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        theirs = twin.variances(model, x, y, (2, 2), list(ours))
    twin.assert_same(model, ours, theirs)


def _models() -> Any:
    from fishr_exp.core import _torchvision as vision  # noqa: F401  (declares operators that torchvision looks for)

    return pytest.importorskip("torchvision.models")


def test_small_vision_transformer(twin: Any) -> None:
    def make() -> nn.Module:
        return _models().VisionTransformer(
            image_size=16,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=12,
            num_classes=3,
        )

    _check(twin, make, 16)


def test_small_swin_transformer(twin: Any) -> None:
    def make() -> nn.Module:
        return _models().SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3)

    _check(twin, make, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        ("resnet50", 32),
        ("alexnet", 64),
        ("vgg11", 32),
        ("densenet121", 32),
        ("mobilenet_v3_small", 32),
        ("convnext_tiny", 32),
        ("vit_b_16", 32),
    ],
)
def test_torchvision(twin: Any, name: str, size: int) -> None:
    options = {"image_size": size} if name.startswith("vit") else {}
    _check(twin, lambda: _narrow(getattr(_models(), name)(num_classes=3, **options)), size)


def _narrow(model: nn.Module) -> nn.Module:
    """Give hidden layers of 4096 units 64, since one gradient of VGG takes a gigabyte."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if 4096 in (layer.out_features for layer in layers):
        of = [layers[0].in_features, *([64] * (len(layers) - 1)), layers[-1].out_features]
        for layer, inputs, outputs in zip(layers, of, of[1:], strict=False):
            layer.__init__(inputs, outputs)  # type: ignore[misc]
    return model
