"""Residual networks of torchvision, with BatchNorm frozen and weights from three places."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fishr_exp.contracts import Model
from fishr_exp.errors import ConfigError
from fishr_exp.vision import torchvision

_log = logging.getLogger(__name__)
_HUB_WEIGHTS = {18: "ResNet18_Weights", 50: "ResNet50_Weights"}
_WRAPPERS = ("state_dict", "model")  # keys under which training programs keep the weights
_BODY = "featurizer.body."


class ResNetFeaturizer(nn.Module):
    """A residual network without its last linear layer.

    Args:
        body: torchvision's network; its `fc` is replaced by the identity.
        freeze_bn: Keep every BatchNorm in evaluation mode, also while training: its running
            statistics stay, its affine weights are trained.
        dropout: Probability of dropping a feature, in [0, 1).
    """

    def __init__(self, body: nn.Module, *, freeze_bn: bool, dropout: float) -> None:
        super().__init__()
        self.features = int(body.fc.in_features)  # type: ignore[union-attr, arg-type]
        body.fc = nn.Identity()
        self.body = body
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.freeze_bn = freeze_bn
        self.train()

    def train(self, mode: bool = True) -> ResNetFeaturizer:
        """Set training mode, except for BatchNorm where that is frozen."""
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map x [n, C, H, W] to features [n, F]."""
        return self.dropout(self.body(x))


def resnet(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    depth: int,
    pretrained: bool,
    weights_file: str | None,
    freeze_bn: bool,
    dropout: float,
) -> Model:
    """Build a ResNet-18 or ResNet-50 featurizer with a linear classifier.

    Args:
        input_shape: Shape of one sample (C, H, W). With C other than 3 the first convolution is
            made anew; weights made for 3 channels are repeated over the C channels.
        num_classes: Number of classes.
        depth: 18 (512 features) or 50 (2048 features).
        pretrained: Start from torchvision's IMAGENET1K_V1 weights, from its hub.
        weights_file: Start from a state dict on disk, and then never ask the hub. It holds a
            torchvision ResNet (its `fc` is left out) or a model of this builder (its classifier
            is loaded too); it may lie under a key `state_dict` or `model`, and its names may
            begin with `module.`.
        freeze_bn: Keep BatchNorm in evaluation mode always; its affine weights are trained.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).

    Returns:
        A model of x [n, C, H, W]; what is not loaded is drawn from PyTorch's global stream.

    Raises:
        ConfigError: If `depth` or `dropout` is out of range, the hub cannot be reached, or the
            file does not hold such weights.

    Source:
        He et al. 2016 (arXiv:1512.03385) for the network; Gulrajani and Lopez-Paz 2021
        (arXiv:2007.01434) for the frozen BatchNorm and the dropout on the features.
    """
    if depth not in _HUB_WEIGHTS:
        raise ConfigError("model.depth", depth, f"allowed are {_listed(_HUB_WEIGHTS)}")
    if not 0 <= dropout < 1:
        raise ConfigError("model.dropout", dropout, "a probability in [0, 1) is allowed")
    body = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    channels = input_shape[0]
    if channels != 3:
        body.conv1 = _first_convolution(channels)
    featurizer = ResNetFeaturizer(body, freeze_bn=freeze_bn, dropout=dropout)
    model = Model(featurizer, nn.Linear(featurizer.features, num_classes))
    if weights_file is not None:
        _load(model, _read(weights_file), weights_file)
    elif pretrained:
        _load_body(model, _from_hub(depth))
    elif freeze_bn:
        _log.warning(
            "model.freeze_bn=true with random weights: BatchNorm normalises nothing, as its "
            "running statistics are those of no data; pass model.freeze_bn=false, or weights"
        )
    return model


def _listed(values: Sequence[object] | Mapping[int, str]) -> str:
    return " and ".join(str(value) for value in values)


def _first_convolution(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _from_hub(depth: int) -> Mapping[str, Tensor]:
    weights = getattr(torchvision.models, _HUB_WEIGHTS[depth]).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a file that was cut off
        raise ConfigError(
            "model.pretrained",
            "true",
            f"the weights cannot be fetched from {weights.url} ({_first_line(error)})",
            f"fetch {weights.url.rpartition('/')[2]} where there is a network and pass its path "
            "as model.weights_file",
        ) from error


def _read(weights_file: str) -> Mapping[str, Tensor]:
    try:
        content: Any = torch.load(
            Path(weights_file).expanduser(), map_location="cpu", weights_only=True
        )
    except OSError as error:
        fault = error.strerror or _first_line(error)
        raise ConfigError(
            "model.weights_file", weights_file, f"cannot be read ({fault})", "check the path"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise _bad_file(weights_file, "is no file of tensors written by torch.save") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise _bad_file(weights_file, "holds no state dict, which maps names to tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load(model: Model, state: Mapping[str, Tensor], weights_file: str) -> None:
    try:
        if any(name.startswith(_BODY) for name in state):
            model.load_state_dict(state)
        else:
            _load_body(model, state)
    except RuntimeError as error:
        raise _bad_file(weights_file, f"does not fit the model: {_first_fault(error)}") from error


def _load_body(model: Model, state: Mapping[str, Tensor]) -> None:
    """Load the weights of a torchvision network, all but its `fc`."""
    body: nn.Module = model.featurizer.body  # type: ignore[assignment]
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    channels = body.conv1.in_channels  # type: ignore[union-attr]
    first = kept.get("conv1.weight")
    if first is not None and first.dim() == 4 and first.shape[1] == 3 != channels:
        kept["conv1.weight"] = first[:, [i % 3 for i in range(channels)]]  # type: ignore[arg-type]
    body.load_state_dict(kept)


def _bad_file(weights_file: str, fault: str) -> ConfigError:
    return ConfigError(
        "model.weights_file",
        weights_file,
        fault,
        "pass the state dict of a torchvision ResNet of model.depth, or of a model trained here",
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _first_fault(error: Exception) -> str:
    """Return the first fault that `load_state_dict` lists under its headline, cut to a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    fault = lines[1] if len(lines) > 1 else lines[0]
    return fault if len(fault) <= 160 else f"{fault[:160]}…"
