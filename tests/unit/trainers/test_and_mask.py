"""AND-mask's direction written out, coordinate by coordinate."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.and_mask import AndMask


def case(*sizes: int) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    network = Model(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return network, Batch(x, y, sizes)


def facts(domains: int) -> Facts:
    return Facts(tuple("abcdefgh"[:domains]), 3, 4, 100)


def by_hand(network: Model, batch: Batch, tau: float) -> tuple[list[torch.Tensor], float]:
    """The direction, and the part of all coordinates that is kept."""
    of_domains = []
    for x, y in zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True):
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        of_domains.append([p.grad.flatten().tolist() for p in network.parameters()])
    directions, kept, count = [], 0, 0
    for k, parameter in enumerate(network.parameters()):
        masked, number = [], 0
        for i in range(parameter.numel()):
            values = [gradients[k][i] for gradients in of_domains]
            signs = sum((v > 0) - (v < 0) for v in values)
            if abs(signs) / len(values) >= tau - 1e-12:
                masked.append(sum(values) / len(values))
                number += 1
            else:
                masked.append(0.0)
        part = number / parameter.numel()
        direction = torch.tensor(masked, dtype=torch.float64) / (1e-10 + part)
        directions.append(direction.view_as(parameter))
        kept, count = kept + number, count + parameter.numel()
    return directions, kept / count


@pytest.mark.parametrize(
    ("sizes", "tau"),
    [((6, 7), 1.0), ((6, 7, 5), 1.0), ((6, 7, 5), 1 / 3), ((4, 4, 4, 4, 4), 0.6), ((9, 3), 0.0)],
)
def test_the_direction(sizes: tuple[int, ...], tau: float) -> None:
    network, batch = case(*sizes)
    expected, kept = by_hand(network, batch, tau)
    found = AndMask(tau).objective(network, batch, 0)
    assert found.gradients is not None
    for ours, theirs in zip(found.gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert found.logs["kept"].item() == pytest.approx(kept)
    assert (kept == 1) == (tau <= 1 / 3)  # the others keep some and drop some
    assert kept > 0
    parts = zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True)
    risks = [F.cross_entropy(network(x), y) for x, y in parts]
    torch.testing.assert_close(found.logs["risk"], torch.stack(risks).mean().detach())


@pytest.mark.parametrize(
    ("tau", "domains", "said"),
    [
        (1.0, 3, ""),
        (0.7, 2, "keeps what 1 keeps; a tau of 0 or less keeps more"),
        (0.7, 3, "keeps what 1 keeps; a tau of 0.333 or less keeps more"),
        (0.7, 4, "keeps what 1 keeps; a tau of 0.5 or less keeps more"),
        (0.5, 4, ""),
        (0.6, 5, ""),
        (0.61, 5, "keeps what 1 keeps; a tau of 0.6 or less keeps more"),
        (1 / 3, 3, "keeps everything, so that the direction is ERM's; a tau above 0.333"),
        (0.0, 4, "keeps everything, so that the direction is ERM's; a tau above 0 keeps less"),
    ],
)
def test_a_tau_that_makes_no_difference_is_named(
    tau: float, domains: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    network, _ = case(2, 2)
    with caplog.at_level(logging.WARNING):
        assert AndMask(tau).prepare(network, facts(domains)) is network
    assert (said in caplog.text) if said else not caplog.text
    assert len(caplog.records) == bool(said)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_refuses(tau: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.tau=.*: must be in \[0, 1\]"):
        AndMask(tau)
