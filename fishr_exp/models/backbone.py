"""Networks of torchvision and timm as featurizers, with frozen BatchNorm and pretrained weights."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.models.weights import does_not_fit, first_line, read_state

_log = logging.getLogger(__name__)
_LIBRARIES = ("torchvision", "timm")
_BODY = "featurizer.body."
_STEM, _COUNTER = "_conv_stem.weight", "num_batches_tracked"  # names of efficientnet_pytorch
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers that help to train GoogLeNet and Inception


class Featurizer(nn.Module):
    """A network without its last linear layer.

    Args:
        body: A network that maps x [n, C, H, W] to features [n, features].
        features: Number of features.
        freeze_bn: Keep every BatchNorm in evaluation mode, also during training: its running
            statistics are fixed, its affine weights are trained.
        dropout: Probability of dropping a feature, in [0, 1).
    """

    def __init__(self, body: nn.Module, features: int, *, freeze_bn: bool, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.body = body
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.freeze_bn = freeze_bn
        self.train()

    def train(self, mode: bool = True) -> Featurizer:
        """Set training mode, except for BatchNorm if that is frozen."""
        super().train(mode)
        if self.freeze_bn:
            for module in _batch_norms(self):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map x [n, C, H, W] to features [n, F]."""
        return self.dropout(self.body(x))


def backbone(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    library: str,
    name: str,
    pretrained: bool,
    weights_file: str | None,
    freeze_bn: bool,
    dropout: float,
) -> Model:
    """Build a network of torchvision or timm as featurizer, with a linear classifier.

    Args:
        input_shape: Shape of one sample (C, H, W). If C is not 3, the first convolution is
            replaced; weights for 3 channels are repeated over the C channels.
        num_classes: Number of classes.
        library: torchvision or timm; the latter must be installed.
        name: The network's name in the library, e.g. `resnet50`. Its last linear layer is left out.
        pretrained: Start from the library's ImageNet weights, from its hub; torchvision's
            IMAGENET1K_V1 if there are several.
        weights_file: Start from a state dict on disk, without access to the hub, or from that of
            an installed package, `package:NAME`. It is that of a network of that name (its last
            layer is left out) or of a model of this builder (its classifier is loaded too); it may
            be under a key such as `state_dict` or `model`, its names may begin with `module.`, and
            the file may be in the safetensors format. An EfficientNet may have the names of
            `efficientnet_pytorch` (`_conv_stem`, `_blocks.0`, ...).
        freeze_bn: Always keep BatchNorm in evaluation mode; its affine weights are trained.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).

    Returns:
        A model of x [n, C, H, W]; weights that are not loaded are drawn from PyTorch's global
        stream.

    Raises:
        ConfigError: If an argument is out of range, the library is missing, the hub cannot be
            reached, or the file does not hold such weights.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) for the frozen BatchNorm and the dropout on
        the features.
    """
    if library not in _LIBRARIES:
        raise ConfigError("model.library", library, f"choose from {', '.join(_LIBRARIES)}")
    if not 0 <= dropout < 1:
        raise ConfigError("model.dropout", dropout, "a probability in [0, 1) is allowed")
    build = _of_torchvision if library == "torchvision" else _of_timm
    body, last, features = build(name, input_shape[0])
    featurizer = Featurizer(body, features, freeze_bn=freeze_bn, dropout=dropout)
    model = Model(featurizer, nn.Linear(features, num_classes))
    if weights_file is not None:
        _load(model, read_state(weights_file), last, weights_file)
    elif pretrained:
        _load_body(model, _from_hub(library, name), last)
    elif freeze_bn and any(_batch_norms(body)):
        _log.warning(
            "model.freeze_bn=true with random weights: BatchNorm does not normalize, since its "
            "running statistics are initial values; pass model.freeze_bn=false, or weights"
        )
    return model


def _of_torchvision(name: str, channels: int) -> tuple[nn.Module, str, int]:
    """Return a network without its last linear layer, that layer's name, and its inputs."""
    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(name, "torchvision", known)
    body = models.get_model(name, weights=None)
    if getattr(body, "aux_logits", False):  # GoogLeNet, Inception: logits in training mode only
        body.aux_logits = False
        for auxiliary in _AUXILIARY:
            if hasattr(body, auxiliary):
                setattr(body, auxiliary, None)
    if channels != 3:
        _replace_first_convolution(body, channels)
    linear = [(n, m) for n, m in body.named_modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1][1].out_features != 1000:
        raise ConfigError(
            "model.name", name, "does not end in a linear layer", "choose another network"
        )
    last, layer = linear[-1]
    _set_module(body, last, nn.Identity())
    return body, last, layer.in_features


def _of_timm(name: str, channels: int) -> tuple[nn.Module, str, int]:
    timm = _timm()
    try:
        body = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    except RuntimeError as error:
        raise _unknown(name, "timm", timm.list_models()) from error
    last = body.default_cfg.get("classifier") or "head"
    features = getattr(body, "head_hidden_size", None) or body.num_features
    return body, last if isinstance(last, str) else last[0], int(features)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.library", "timm", "is not installed", "pip install timm"
        ) from error


def _unknown(name: str, library: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see its list of models"
    return ConfigError("model.name", name, f"{library} has no such network", hint)


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    kind = nn.modules.batchnorm._BatchNorm
    return [inner for inner in module.modules() if isinstance(inner, kind)]


def _replace_first_convolution(body: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one for another number of channels."""
    name, old = next((n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    _set_module(body, name, new)


def _set_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, module)


def _from_hub(library: str, name: str) -> Mapping[str, Tensor]:
    hint = (
        "download {0} on a machine with internet access and pass the path as model.weights_file, "
        "or start without weights: model.pretrained=false"
    )
    if library == "timm":
        try:
            return _timm().create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            reason = f"timm cannot download the weights ({first_line(error)})"
            raise ConfigError("model.pretrained", "true", reason, hint.format("them")) from error
    known = torchvision.models.get_model_weights(name)
    weights = getattr(known, "IMAGENET1K_V1", None) or known.DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a file that was cut off
        raise ConfigError(
            "model.pretrained",
            "true",
            f"the weights cannot be downloaded from {weights.url} ({first_line(error)})",
            hint.format(weights.url.rpartition("/")[2]),
        ) from error


def _load(model: Model, state: Mapping[str, Tensor], last: str, weights_file: str) -> None:
    try:
        if any(name.startswith(_BODY) for name in state):
            model.load_state_dict(state)
        else:
            _load_body(model, state, last)
    except Exception as error:  # sparse or quantized tensors raise almost anything
        raise does_not_fit(weights_file, error) from error


def _load_body(model: Model, state: Mapping[str, Tensor], last: str) -> None:
    """Load the weights of a library's network, except those of its last layer."""
    body: nn.Module = model.featurizer.body  # type: ignore[assignment]
    if _STEM in state:
        state = _with_names_of(body, state)
    left_out = tuple(f"{name}." for name in (last, *_AUXILIARY))
    kept = {name: value for name, value in state.items() if not name.startswith(left_out)}
    for name, own in body.state_dict().items():
        given = kept.get(name)
        if given is None or given.shape == own.shape or own.dim() != 4 or given.dim() != 4:
            continue
        others = given.shape[:1] + given.shape[2:] == own.shape[:1] + own.shape[2:]
        if others and given.shape[1] == 3 and own.shape[1] != 3:  # the first convolution
            kept[name] = given[:, [i % 3 for i in range(own.shape[1])]]
    body.load_state_dict(kept)


def _with_names_of(body: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give the weights of `efficientnet_pytorch` timm's names; both have them in the same order."""
    theirs = [name for name in state if not name.startswith("_fc.") and not name.endswith(_COUNTER)]
    names = [name for name in body.state_dict() if not name.endswith(_COUNTER)]
    if len(theirs) != len(names):  # another network, as its loading will say
        return state
    return {name: state[other] for name, other in zip(names, theirs, strict=True)}
