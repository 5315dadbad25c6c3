"""DomainBed's choice of a network by the size of the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.models import domainbed as module
from fishr_exp.models.domainbed import domainbed

DEFAULTS: dict[str, Any] = {
    "num_classes": 7, "pretrained": True, "weights_file": None, "freeze_bn": True, "dropout": 0.5,
}  # fmt: skip


def test_small_images_get_the_mnist_network() -> None:
    model = domainbed(input_shape=(2, 28, 28), **DEFAULTS)
    assert model(torch.zeros(3, 2, 28, 28)).shape == (3, 7)
    assert model.classifier.in_features == 128


def test_large_images_get_a_resnet_50(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(module, "backbone", lambda **keywords: given.update(keywords))
    domainbed(input_shape=(3, 224, 224), **DEFAULTS)
    assert given == {
        "input_shape": (3, 224, 224),
        "library": "torchvision",
        "name": "resnet50",
        **DEFAULTS,
    }


@pytest.mark.parametrize(
    ("shape", "changed", "words"),
    [
        ((3, 96, 96), {}, "model=domainbed: .* not 96x96; choose another model"),
        ((3, 224, 224), {"pretrained": False}, "model.weights_file=null: .* ImageNet weights"),
    ],
)
def test_what_it_refuses(shape: tuple[int, ...], changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        domainbed(input_shape=shape, **{**DEFAULTS, **changed})
