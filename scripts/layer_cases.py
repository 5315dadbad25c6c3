"""Layers and networks of which `table_of_layers.py` says how they are computed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fishr_exp.core._torchvision import torchvision

CLASSES = 7


class Case(NamedTuple):
    """A model and the shape of one sample."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: int = 0  # inputs are integers below this, if it is not 0


class Between(nn.Module):
    """A layer between a linear layer, over the last dimension, and a classifier."""

    def __init__(
        self,
        layer: nn.Module,
        last: int = 0,
        call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x),
    ) -> None:
        super().__init__()
        self.before = nn.Linear(last, last) if last else nn.Identity()
        self.layer, self.call = layer, call
        self.classifier = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        y = self.call(
            self.layer, torch.tanh(self.before(x)) if len(self.before.state_dict()) else x
        )
        return self.classifier(torch.tanh(y.flatten(1)))


class _Distances(nn.Module):
    """Distances to learned prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


class _StandardizedConv(nn.Conv2d):
    """As timm's `StdConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(weight, None, None, training=True, momentum=0.0)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


def _vector(layer: Callable[[], nn.Module]) -> Case:
    return Case(lambda: Between(layer(), 32), (32,))


def _tokens(
    layer: Callable[[], nn.Module],
    call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x),
) -> Case:
    return Case(lambda: Between(layer(), 32, call), (12, 32))


def _image(layer: Callable[[], nn.Module]) -> Case:
    return Case(lambda: Between(layer(), 12), (8, 12, 12))


def _folded(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _positions_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1)).transpose(0, 1)


def _of_other_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x[:, :4], x, x, need_weights=False)[0]


def _first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def _attention() -> nn.Module:
    return nn.MultiheadAttention(32, 4, batch_first=True)


def _weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


LAYERS: dict[str, Case] = {
    "Linear": _vector(lambda: nn.Linear(32, 32)),
    "Linear on [N, T, F]": _tokens(lambda: nn.Linear(32, 32)),
    "Linear on [N·T, F]": _tokens(lambda: nn.Linear(32, 32), _folded),
    "Linear on [T, N, F]": _tokens(lambda: nn.Linear(32, 32), _positions_first),
    "Conv1d": Case(lambda: Between(nn.Conv1d(8, 8, 3), 32), (8, 32)),
    "Conv2d": _image(lambda: nn.Conv2d(8, 8, 3)),
    "Conv2d, depthwise": _image(lambda: nn.Conv2d(8, 8, 3, groups=8)),
    "Conv3d": Case(lambda: Between(nn.Conv3d(2, 4, 3), 8), (2, 8, 8, 8)),
    "ConvTranspose2d": _image(lambda: nn.ConvTranspose2d(8, 8, 3)),
    "Conv2d, standardized weight": _image(lambda: _StandardizedConv(8, 8, 3)),
    "Conv2d, weight_norm": _image(lambda: _weight_norm(nn.Conv2d(8, 8, 3))),
    "BatchNorm2d, evaluation mode": _image(lambda: nn.BatchNorm2d(8).eval()),
    "BatchNorm2d, training mode": _image(lambda: nn.BatchNorm2d(8)),
    "LayerNorm": _tokens(lambda: nn.LayerNorm(32)),
    "GroupNorm": _image(lambda: nn.GroupNorm(2, 8)),
    "InstanceNorm2d, affine": _image(lambda: nn.InstanceNorm2d(8, affine=True)),
    "RMSNorm": _tokens(lambda: nn.RMSNorm(32)),
    "Embedding": Case(lambda: Between(nn.Embedding(50, 16)), (12,), words=50),
    "Embedding on [N]": Case(lambda: Between(nn.Embedding(50, 16)), (), words=50),
    "EmbeddingBag": Case(lambda: Between(nn.EmbeddingBag(50, 16)), (12,), words=50),
    "MultiheadAttention, to itself": _tokens(_attention, lambda a, x: a(x, x, x)[0]),
    "MultiheadAttention, to other tokens": _tokens(_attention, _of_other_tokens),
    "TransformerEncoderLayer": _tokens(
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    ),
    "PReLU": _image(lambda: nn.PReLU(8)),
    "Bilinear": Case(
        lambda: Between(nn.Bilinear(32, 32, 8), 32, lambda layer, x: layer(x, x)), (32,)
    ),
    "RNN": _tokens(lambda: nn.RNN(32, 16, batch_first=True), _first),
    "GRU": _tokens(lambda: nn.GRU(32, 16, batch_first=True), _first),
    "LSTM": _tokens(lambda: nn.LSTM(32, 16, batch_first=True), _first),
    "TorchScript module": _vector(
        lambda: torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.Tanh()))
    ),
    "cdist to a parameter": _vector(_Distances),
    "Dropout, training mode": _vector(lambda: nn.Dropout(0.5)),
    "Dropout, training mode, beside PReLU": _image(
        lambda: nn.Sequential(nn.PReLU(8), nn.Dropout(0.5))
    ),
}


def _of_torchvision(name: str, side: int = 64, **options: object) -> Case:
    def build() -> nn.Module:
        return torchvision.models.get_model(name, num_classes=CLASSES, **options)

    return Case(build, (3, side, side))


def _of_timm(name: str, side: int = 64, **options: object) -> Case:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return Case(build, (3, side, side))


def _swin(name: str) -> Case:
    return _of_torchvision(name, 96)


NETWORKS: dict[str, Case] = {
    "resnet18": _of_torchvision("resnet18"),
    "resnet50": _of_torchvision("resnet50"),
    "densenet121": _of_torchvision("densenet121"),
    "mobilenet_v3_small": _of_torchvision("mobilenet_v3_small"),
    "efficientnet_b0": _of_torchvision("efficientnet_b0"),
    "convnext_tiny": _of_torchvision("convnext_tiny"),
    "vit_b_16": _of_torchvision("vit_b_16", image_size=64),
    "swin_t": _swin("swin_t"),
    "swin_v2_t": _swin("swin_v2_t"),
}
TIMM = {
    f"timm {name}": _of_timm(name, **options)
    for name, options in {
        "mobilevit_xxs": {},
        "mobilevit_s": {},
        "nf_resnet50": {},
        "resnetv2_50x1_bit": {},
        "beit_base_patch16_224": {"img_size": 64, "depth": 4},
        "xcit_nano_12_p8_224": {},
        "convnextv2_atto": {},
    }.items()
}
if importlib.util.find_spec("timm"):
    NETWORKS |= TIMM
