"""The convolutional network of DomainBed's MNIST variants."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fishr_exp.core.contracts import Model

_GROUPS = 8
_FEATURES = 128


def mnist_cnn(*, input_shape: Sequence[int], num_classes: int) -> Model:
    """Build four 3×3 convolutions, each followed by ReLU and then GroupNorm, and average.

    The normalization comes after the ReLU, and it sees one sample at a time, so that the gradient
    of a sample does not depend on the others of its minibatch.

    Args:
        input_shape: Shape of one sample (C, H, W).
        num_classes: Number of classes.

    Returns:
        A model of x [n, C, H, W] with 128 features; its initial weights are drawn from PyTorch's
        global stream.

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
    return Model(featurizer, nn.Linear(_FEATURES, num_classes))


def _convolution(channels: int, filters: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, filters, kernel_size=3, stride=stride, padding=1),
        nn.ReLU(),
        nn.GroupNorm(_GROUPS, filters),
    )
