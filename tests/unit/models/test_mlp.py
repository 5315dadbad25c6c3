"""The perceptron of Colored MNIST."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fishr_exp.core.errors import ConfigError
from fishr_exp.models.mlp import mlp


def irm_mlp(**changes):
    arguments = {
        "input_shape": (2, 14, 14),
        "num_classes": 2,
        "hidden": 390,
        "hidden_layers": 2,
        "single_logit": True,
    }
    return mlp(**{**arguments, **changes})


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_the_irm_model_is_392_390_390_1():
    model = irm_mlp()
    assert [(m.in_features, m.out_features) for m in linears(model)] == [
        (392, 390),
        (390, 390),
        (390, 1),
    ]
    assert sum(p.numel() for p in model.classifier.parameters()) == 391


def test_weights_are_xavier_uniform_and_biases_zero():
    for layer in linears(irm_mlp()):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.abs().max() > 0.9 * bound
        assert not layer.bias.any()


def test_features_are_what_the_classifier_reads():
    model = irm_mlp()
    x = torch.rand(5, 2, 14, 14)
    features = model.featurizer(x)
    assert features.shape == (5, 390)
    assert (features >= 0).all()
    assert torch.equal(model(x), model.classifier(features))


@pytest.mark.parametrize(
    ("num_classes", "single_logit", "outputs"), [(2, True, 1), (2, False, 2), (10, True, 10)]
)
def test_one_logit_for_two_classes_only(num_classes, single_logit, outputs):
    model = irm_mlp(num_classes=num_classes, single_logit=single_logit)
    assert model(torch.rand(3, 2, 14, 14)).shape == (3, outputs)


def test_without_hidden_layers_the_model_is_linear():
    model = irm_mlp(hidden_layers=0)
    assert len(linears(model)) == 1
    assert model(torch.rand(3, 2, 14, 14)).shape == (3, 1)


def test_the_global_stream_alone_decides_the_weights():
    torch.manual_seed(3)
    one = irm_mlp()
    torch.manual_seed(3)
    two = irm_mlp()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(("key", "value"), [("hidden", 0), ("hidden_layers", -1)])
def test_sizes_out_of_range_name_their_key(key, value):
    with pytest.raises(ConfigError, match=f"model.{key}={value}"):
        irm_mlp(**{key: value})
