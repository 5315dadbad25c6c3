"""The multilayer perceptron of the Colored MNIST experiments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.models.weights import load_model


def mlp(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    hidden: int,
    hidden_layers: int,
    single_logit: bool,
    weights_file: str | None = None,
) -> Model:
    """Build a perceptron on flattened images, with Xavier-uniform weights and zero biases.

    Args:
        input_shape: Shape of one sample (C, H, W).
        num_classes: Number of classes.
        hidden: Units of each hidden layer, >= 1; also the number of features.
        hidden_layers: Number of hidden layers, each a linear map and a ReLU, >= 0. With 0 the
            features are the flattened input.
        single_logit: With two classes, give one logit (class 1 against class 0) in place of two;
            without effect for any other number of classes.
        weights_file: Start from the weights of such a model that was trained here, a run's
            `checkpoints/best.pt`, with its classifier; None: from random weights.

    Returns:
        A model of x [n, C, H, W]; its initial weights are drawn from PyTorch's global stream.

    Raises:
        ConfigError: If `hidden` or `hidden_layers` is out of range, or the file does not hold such
            weights.

    Source:
        Arjovsky et al. 2019 (arXiv:1907.02893), the model of the Colored MNIST script, which Fishr
        (Ramé et al. 2022, arXiv:2109.02934) reuses: 392-390-390-1.
    """
    if hidden < 1:
        raise ConfigError("model.hidden", hidden, "a layer has at least 1 unit")
    if hidden_layers < 0:
        raise ConfigError("model.hidden_layers", hidden_layers, "the number of layers is 0 or more")
    sizes = [math.prod(input_shape), *[hidden] * hidden_layers]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [_linear(fan_in, fan_out), nn.ReLU()]
    outputs = 1 if single_logit and num_classes == 2 else num_classes
    model = Model(nn.Sequential(*layers), _linear(sizes[-1], outputs))
    return model if weights_file is None else load_model(model, weights_file)


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
