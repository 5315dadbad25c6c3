"""Averages of weights against the formula by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.averaging.ema import Ema


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("start", [1, 3])
def test_the_average_by_hand(start: int) -> None:
    network, scheme = model(), Ema(decay=0.75, start=start)
    scheme.prepare(network)
    expected = None
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network.featurizer[1].running_mean.fill_(step)
        scheme.after_step(network, step)
        weight = network.classifier.weight.detach().clone()
        if step < start:
            assert scheme.averaged(network) is network
            continue
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
        torch.testing.assert_close(scheme.averaged(network).classifier.weight, expected)
    assert scheme.averaged(network).featurizer[1].running_mean[0] == 5
    assert not any(p.requires_grad for p in scheme.averaged(network).parameters())


def test_state_goes_through_a_checkpoint() -> None:
    network, schemes = model(), [Ema(0.5), Ema(0.5)]
    for scheme in schemes:
        scheme.prepare(network)
    schemes[0].after_step(network, 1)
    schemes[1].load_state_dict(schemes[0].state_dict())
    with torch.no_grad():
        network.classifier.weight.mul_(2)
    for scheme in schemes:
        scheme.after_step(network, 2)
    means = [scheme.averaged(network).classifier.weight for scheme in schemes]
    assert torch.equal(*means)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"start": 0}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"averaging.{next(iter(wrong))}="):
        Ema(**wrong)
