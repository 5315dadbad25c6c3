"""The convolutional network of DomainBed's MNIST variants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishr_exp.models.mnist_cnn import mnist_cnn


@pytest.mark.parametrize(("channels", "num_classes", "head"), [(2, 2, 258), (1, 10, 1290)])
def test_shapes_and_the_size_of_the_classifier(channels, num_classes, head):
    model = mnist_cnn(input_shape=(channels, 28, 28), num_classes=num_classes)
    x = torch.rand(3, channels, 28, 28)
    assert model.featurizer(x).shape == (3, 128)
    assert model(x).shape == (3, num_classes)
    assert sum(p.numel() for p in model.classifier.parameters()) == head


def test_each_convolution_is_followed_by_relu_and_then_groupnorm():
    layers = list(mnist_cnn(input_shape=(1, 28, 28), num_classes=10).featurizer)
    kinds = [type(layer) for layer in layers]
    assert kinds[:12] == [nn.Conv2d, nn.ReLU, nn.GroupNorm] * 4
    assert [layer.num_groups for layer in layers[2:12:3]] == [8] * 4
    assert [layer.out_channels for layer in layers[0:12:3]] == [64, 128, 128, 128]
    assert [layer.stride for layer in layers[0:12:3]] == [(1, 1), (2, 2), (1, 1), (1, 1)]


def test_equals_the_network_written_out():
    torch.manual_seed(0)
    model = mnist_cnn(input_shape=(2, 28, 28), num_classes=2)
    x = torch.rand(4, 2, 28, 28)
    named = dict(model.featurizer.named_parameters())
    h = x
    for i, stride in zip((0, 3, 6, 9), (1, 2, 1, 1), strict=True):
        h = nn.functional.conv2d(h, named[f"{i}.weight"], named[f"{i}.bias"], stride, 1)
        h = nn.functional.group_norm(h.relu(), 8, named[f"{i + 2}.weight"], named[f"{i + 2}.bias"])
    torch.testing.assert_close(model.featurizer(x), h.mean((2, 3)))


def test_a_sample_does_not_see_the_others():
    model = mnist_cnn(input_shape=(2, 28, 28), num_classes=2).double()
    x = torch.rand(4, 2, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
