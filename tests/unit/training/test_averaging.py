"""Averages of weights against the formula by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.averaging.batch_norm import learning_norms, recompute_statistics
from fishr_exp.training.averaging.ema import Ema
from fishr_exp.training.averaging.running import Running
from fishr_exp.training.averaging.sma import Sma


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


@pytest.mark.parametrize("start", [1, 3])
def test_the_simple_average_by_hand(start: int) -> None:
    network, scheme = model(), Sma(start=start)
    scheme.prepare(network)
    weights = []
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        scheme.after_step(network, step)
        weights.append(network.classifier.weight.detach().clone())
        if step < start:
            assert scheme.averaged(network) is network
            continue
        expected = sum(weights[start - 1 :]) / (step - start + 1)
        torch.testing.assert_close(scheme.averaged(network).classifier.weight, expected)
    assert not any(p.requires_grad for p in scheme.averaged(network).parameters())


@pytest.mark.parametrize("kind", [Ema, Sma])
def test_state_goes_through_a_checkpoint(kind: type[Running]) -> None:
    network, schemes = model(), [kind(start=1), kind(start=1)]
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


def test_statistics_are_the_means_of_those_of_the_minibatches() -> None:
    """Of the network as it is evaluated: with no feature dropped; and nothing else moves."""
    network = model()
    network.featurizer.append(nn.Dropout(0.5))
    network.featurizer.append(nn.BatchNorm1d(4).double())
    network.featurizer[1].momentum = 0.3
    inputs = [torch.randn(n, 3, dtype=torch.float64) for n in (5, 9, 6)]
    hidden = [network.featurizer[0](x) for x in inputs]
    norms = learning_norms(network)
    assert norms == [network.featurizer[1], network.featurizer[3]]
    network.eval()
    network.featurizer[2].train()
    random, weights = torch.get_rng_state(), network.featurizer[0].weight.clone()
    recompute_statistics(network, norms, inputs)
    expected = torch.stack([x.mean(0) for x in hidden]).mean(0)
    torch.testing.assert_close(network.featurizer[1].running_mean, expected)
    expected = torch.stack([x.var(0) for x in hidden]).mean(0)
    torch.testing.assert_close(network.featurizer[1].running_var, expected)
    normalized = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in hidden]
    expected = torch.stack([x.var(0) for x in normalized]).mean(0)
    torch.testing.assert_close(network.featurizer[3].running_var, expected)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(network.featurizer[0].weight, weights)
    assert network.featurizer[1].momentum == 0.3
    assert [m.training for m in network.featurizer] == [False, False, True, False]


def test_frozen_batch_norm_is_left_alone() -> None:
    """Whether all of it is frozen, as by `model.freeze_bn`, or some."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()
            return self

    network = model()
    network.featurizer = Frozen(*network.featurizer, nn.BatchNorm1d(4).double())
    network.featurizer[1].running_mean.fill_(7.0)
    norms = learning_norms(network)
    assert norms == [network.featurizer[2]]
    recompute_statistics(network, norms, [torch.randn(5, 3, dtype=torch.float64)])
    assert network.featurizer[1].running_mean[0] == 7
    assert network.featurizer[1].num_batches_tracked == 0
    assert network.featurizer[2].num_batches_tracked == 1


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"decay": -0.1}, {"start": 0}, {"batch_norm_steps": -1}]
)
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"averaging.{next(iter(wrong))}="):
        Ema(**wrong)


@pytest.mark.parametrize("wrong", [{"start": 0}, {"batch_norm_steps": -1}])
def test_the_simple_average_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"averaging.{next(iter(wrong))}="):
        Sma(**wrong)
