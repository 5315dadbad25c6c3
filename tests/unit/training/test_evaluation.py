"""Counts of an evaluation, and the metrics read off them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Minibatch, Model
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.training.evaluation import count, measure

CPU = torch.device("cpu")


class Given(nn.Module):
    """Its input is the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def model(classes: int) -> Model:
    network = Model(Given(), nn.Linear(classes, classes))
    nn.init.eye_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    return network


def test_the_table_and_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [0, 1.0, 0], [0, 0, 1.0], [5.0, 0, 0]])
    labels = torch.tensor([0, 1, 2, 2, 1])
    chunks = [Minibatch(logits[:2], labels[:2]), Minibatch(logits[2:], labels[2:])]
    counts = count(model(3), chunks, per_sample_losses, 3, CPU)
    assert counts.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    expected = nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
    assert counts.loss == pytest.approx(expected.item(), rel=1e-6)
    measured = measure(counts)
    assert measured["accuracy"] == 3 / 5
    assert measured["loss"] == pytest.approx(expected.item() / 5, rel=1e-6)
    doubled = measure(counts + counts)
    assert doubled == pytest.approx(measured)


def test_no_samples_measure_nothing() -> None:
    counts = count(model(3), [], per_sample_losses, 3, CPU)
    assert measure(counts) == measure(None) == {"accuracy": None, "loss": None}


def test_one_logit_is_two_classes() -> None:
    network = Model(Given(), nn.Linear(1, 1))
    nn.init.ones_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    chunk = Minibatch(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 1, 0]))
    counts = count(network, [chunk], per_sample_losses, 2, CPU)
    assert counts.confusion.tolist() == [[0, 1], [1, 1]]
    assert math.isfinite(counts.loss)
