"""Weights of earlier runs as a start."""

from __future__ import annotations

import functools

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.models.mlp import mlp
from fishr_exp.models.mnist_cnn import mnist_cnn

mlp_of_two = functools.partial(
    mlp, input_shape=(2, 14, 14), num_classes=2, hidden=3, hidden_layers=1, single_logit=True
)
mnist_cnn_of_two = functools.partial(mnist_cnn, input_shape=(1, 28, 28), num_classes=2)


@pytest.mark.parametrize("build", [mlp_of_two, mnist_cnn_of_two])
def test_it_starts_from_weights_of_a_run_with_its_classifier(build, tmp_path) -> None:
    torch.manual_seed(0)
    trained = build()
    torch.save({"step": 7, "model": trained.state_dict()}, tmp_path / "best.pt")
    torch.manual_seed(1)
    loaded = build(weights_file=str(tmp_path / "best.pt"))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert not torch.equal(build().classifier.weight, loaded.classifier.weight)


@pytest.mark.parametrize("build", [mlp_of_two, mnist_cnn_of_two])
def test_weights_of_another_network_are_refused_in_one_line(build, tmp_path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "best.pt")
    for name, reason in (("best.pt", "does not fit the model: "), ("none.pt", "cannot be read")):
        with pytest.raises(ConfigError, match=reason) as caught:
            build(weights_file=str(tmp_path / name))
        assert caught.value.key == "model.weights_file"
        assert "\n" not in str(caught.value)
