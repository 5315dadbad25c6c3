"""Gradients of parts of a batch, and at other weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Batch, Model
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._directions import each_domain, moved, norm, risk_and_gradients


def model() -> Model:
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    return Model(featurizer, nn.Linear(4, 3)).double()


def batch(*sizes: int) -> Batch:
    n = sum(sizes)
    return Batch(torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3, sizes)


def test_each_domain_is_a_batch_of_its_own() -> None:
    whole = batch(6, 7, 5)
    parts = each_domain(whole)
    assert [part.sizes for part in parts] == [(6,), (7,), (5,)]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.y for part in parts]), whole.y)


def test_gradients_are_those_of_the_mean_risk() -> None:
    network, whole = model().eval(), batch(6, 7)
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameters = [*network.parameters(), unused]
    risk, gradients = risk_and_gradients(network, whole, per_sample_losses, parameters)
    losses = nn.functional.cross_entropy(network(whole.x), whole.y, reduction="none")
    expected = (losses[:6].mean() + losses[6:].mean()) / 2
    torch.testing.assert_close(risk, expected.detach())
    expected.backward()
    for gradient, parameter in zip(gradients[:-1], network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert torch.equal(gradients[-1], torch.zeros(2, dtype=torch.float64))
    assert not risk.requires_grad


def test_weights_move_within_the_block_only() -> None:
    network, whole = model(), batch(6, 7)
    parameters = [*network.parameters()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps = [torch.full_like(parameter, 0.1) for parameter in parameters]
    with moved(network, parameters, steps):
        for parameter, old in zip(parameters, dict(network.named_parameters()), strict=True):
            assert torch.equal(parameter, before[old] + 0.1)
        network(whole.x)  # BatchNorm takes note
        assert not torch.equal(
            network.featurizer[1].running_mean, before["featurizer.1.running_mean"]
        )
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ZeroDivisionError), moved(network, parameters, steps):
        1 / 0  # noqa: B018
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_norm_is_that_of_all_entries() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    torch.testing.assert_close(norm(tensors), torch.cat([t.flatten() for t in tensors]).norm())


def test_gradients_under_autocast_have_the_types_of_the_weights() -> None:
    network, whole = model().float(), batch(6, 7)
    whole = Batch(whole.x.float(), whole.y, whole.sizes)
    with torch.autocast("cpu", torch.bfloat16):
        _, gradients = risk_and_gradients(
            network, whole, per_sample_losses, [*network.parameters()]
        )
        assert torch.is_autocast_enabled("cpu")
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_under_autocast_a_pass_at_moved_weights_reads_them() -> None:
    """Autocast keeps the weights that it has cast, and does not see that they change in place."""
    network, whole = model().float(), batch(6, 7)
    whole = Batch(whole.x.float(), whole.y, whole.sizes)
    elsewhere = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in elsewhere.parameters():
            parameter.add_(0.5)

    def found(network: Model) -> torch.Tensor:
        parameters = [*network.parameters()]
        risk, gradients = risk_and_gradients(network, whole, per_sample_losses, parameters)
        return torch.cat([risk.view(1), *(gradient.flatten() for gradient in gradients)])

    results = []
    for one in (network, elsewhere):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(found(one))
    with torch.autocast("cpu", torch.bfloat16):
        before = found(network)
        parameters = [*network.parameters()]
        with moved(network, parameters, [torch.full_like(p, 0.5) for p in parameters]):
            within = found(network)
        after = found(network)
    assert not torch.equal(results[0], results[1])
    assert torch.equal(before, results[0])
    assert torch.equal(within, results[1])
    assert torch.equal(after, results[0])
