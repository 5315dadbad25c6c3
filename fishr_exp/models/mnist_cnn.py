"""The convolutional network of DomainBed's MNIST variants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.models.weights import load_model

_GROUPS = 8
_FEATURES = 128


def mnist_cnn(
    *, input_shape: Sequence[int], num_classes: int, weights_file: str | None = None
) -> Model:
    """Build four 3×3 convolutions, each followed by ReLU and then GroupNorm, and average.

    The normalization comes after the ReLU, and it sees one sample at a time, so that the gradient
    of a sample does not depend on the others of its minibatch.

    Args:
        input_shape: Shape of one sample (C, H, W).
        num_classes: Number of classes.
        weights_file: Start from the weights of such a model that was trained here, a run's
            `checkpoints/best.pt`, with its classifier; None: from random weights.

    Returns:
        A model of x [n, C, H, W] with 128 features; its initial weights are drawn from PyTorch's
        global stream.

    Raises:
        ConfigError: If the file does not hold such weights.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434), appendix on architectures; the order of
        ReLU and GroupNorm is that of their code.
    """
    channels = input_shape[0]
    featurizer = nn.Sequential(
        *_convolution(channels, 64),
        *_convolution(64, _FEATURES, stride=2),
        *_convolution(_FEATURES, _FEATURES),
        *_convolution(_FEATURES, _FEATURES),
        nn.AdaptiveAvgPool2d(1),  # [n, 128, 1, 1]
        nn.Flatten(),  # [n, 128]
    )
    model = Model(featurizer, nn.Linear(_FEATURES, num_classes))
    return model if weights_file is None else load_model(model, weights_file)


def _convolution(channels: int, filters: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, filters, kernel_size=3, stride=stride, padding=1),
        nn.ReLU(),
        nn.GroupNorm(_GROUPS, filters),
    )
