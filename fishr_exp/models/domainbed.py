"""DomainBed's networks, selected by the size of the images."""

from __future__ import annotations

from collections.abc import Sequence

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.models.backbone import backbone
from fishr_exp.models.mnist_cnn import mnist_cnn

_MNIST, _IMAGES = (28, 28), (224, 224)


def domainbed(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    pretrained: bool,
    weights_file: str | None,
    freeze_bn: bool,
    dropout: float,
) -> Model:
    """Build `mnist_cnn` for images of 28×28 pixels, a ResNet-50 for those of 224×224.

    Args:
        input_shape: Shape of one sample (C, H, W).
        num_classes: Number of classes.
        pretrained: For the ResNet-50, like the following arguments; see `backbone`.
        weights_file: A state dict on disk, instead of torchvision's hub.
        freeze_bn: Always keep BatchNorm in evaluation mode; its affine weights are trained.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).

    Raises:
        ConfigError: If the images have another size, or a ResNet-50 gets no weights.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code.

    Departs: their code also has a network for 32×32 pixels, which none of their tables uses.
    """
    size = tuple(input_shape[1:])
    if size == _MNIST:
        return mnist_cnn(input_shape=input_shape, num_classes=num_classes)
    if size != _IMAGES:
        shown = "x".join(str(pixels) for pixels in size)
        raise ConfigError(
            "model", "domainbed", f"has networks for images of 28x28 and 224x224, not {shown}",
            "choose another model",
        )  # fmt: skip
    if not pretrained and weights_file is None:
        raise ConfigError(
            "model.weights_file", None, "DomainBed starts from ImageNet weights",
            "pass their file, or model.pretrained=true for torchvision's",
        )  # fmt: skip
    return backbone(
        input_shape=input_shape,
        num_classes=num_classes,
        library="torchvision",
        name="resnet50",
        pretrained=pretrained,
        weights_file=weights_file,
        freeze_bn=freeze_bn,
        dropout=dropout,
    )
