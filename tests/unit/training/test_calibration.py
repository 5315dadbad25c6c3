"""Calibration by bins, beside a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fishr_exp.runs.evaluated import Evaluated
from fishr_exp.training.calibration import BINS, Reliability, probabilities

CPU = torch.device("cpu")


def slow_error(probability: np.ndarray, y: np.ndarray) -> float:
    """Equation 3 of Guo et al. 2017, sample by sample."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for row, label in zip(probability, y, strict=True):
        predicted = int(row.argmax())
        confidence = float(row[predicted])
        m = next(m for m in range(1, BINS + 1) if (m - 1) / BINS < confidence <= m / BINS)
        bins[m - 1].append((confidence, predicted == label))
    gaps = []
    for samples in bins:
        if samples:
            confidences, rights = zip(*samples, strict=True)
            gap = abs(sum(rights) / len(samples) - sum(confidences) / len(samples))
            gaps.append(len(samples) / len(y) * gap)
    return sum(gaps)


def evaluated(reliability: Reliability, samples: int) -> Evaluated:
    return Evaluated("a", "all", "test", {}, ((samples,),), reliability.bins())


@pytest.mark.parametrize("seed", range(10))
def test_the_error_is_that_of_a_slow_twin_whatever_the_chunks(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    classes = 2 + seed
    logits = torch.randn(200, classes, generator=draw) * (seed + 1)
    y = torch.randint(classes, (200,), generator=draw)
    parts = []
    for start, end in ((0, 70), (70, 200)):
        reliability = Reliability(CPU)
        for chunk in torch.arange(start, end).split(33):
            own = probabilities(logits[chunk])
            reliability.add(own, own.argmax(1), y[chunk])
        parts.append(reliability)
    both = parts[0] + parts[1]
    bins = both.bins()
    assert sum(bin.samples for bin in bins) == 200
    assert len(bins) == 15
    error = evaluated(both, 200).calibration_error
    expected = slow_error(probabilities(logits).numpy(), y.numpy())
    assert error == pytest.approx(expected, abs=1e-12)


def test_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last() -> None:
    probability = torch.tensor([[0.6, 0.4], [1.0, 0.0], [0.2, 0.8]], dtype=torch.float64)
    reliability = Reliability(CPU, bins=5)
    reliability.add(probability, probability.argmax(1), torch.tensor([0, 0, 0]))
    assert [bin.samples for bin in reliability.bins()] == [0, 0, 1, 1, 1]
    assert [bin.accuracy for bin in reliability.bins()] == [None, None, 1.0, 0.0, 1.0]
    expected = (0.4 + 0.8 + 0.0) / 3
    assert evaluated(reliability, 3).calibration_error == pytest.approx(expected, abs=1e-12)


def test_one_logit_is_the_probability_of_the_second_class() -> None:
    found = probabilities(torch.tensor([[0.0], [100.0], [-1.0]]))
    two = probabilities(torch.tensor([[0.0, 0.0], [0.0, 100.0], [0.0, -1.0]]))
    torch.testing.assert_close(found, two)
