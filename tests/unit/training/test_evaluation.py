"""Counts of an evaluation, and the metrics read off them."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from fishr_exp.core.contracts import Minibatch, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.training.evaluation import METRICS, Counts, check_metrics, count, measure

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
    measured = measure(counts, ["loss", "accuracy"])
    assert [*measured] == ["accuracy", "loss"]
    assert measured["accuracy"] == 3 / 5
    assert measured["loss"] == pytest.approx(expected.item() / 5, rel=1e-6)
    doubled = measure(counts + counts, ["accuracy", "loss"])
    assert doubled == pytest.approx(measured)


def test_no_samples_measure_nothing() -> None:
    counts = count(model(3), [], per_sample_losses, 3, CPU)
    nothing = {"accuracy": None, "macro_f1": None}
    assert measure(counts, [*nothing]) == measure(None, [*nothing]) == nothing


@pytest.mark.parametrize("seed", range(20))
def test_metrics_are_scikit_learns(seed: int) -> None:
    """On random labels and predictions, also where classes are absent of one or of both."""
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(2, 9))
    there, guessed = (
        draw.choice(classes, size=int(draw.integers(1, classes + 1)), replace=False)
        for _ in range(2)
    )
    y, predicted = draw.choice(there, size=50), draw.choice(guessed, size=50)
    table = sklearn.metrics.confusion_matrix(y, predicted, labels=range(classes))
    measured = measure(Counts(torch.from_numpy(table).long(), 1.0), [*METRICS])
    recall = sklearn.metrics.recall_score(y, predicted, labels=np.unique(y), average=None)
    macro_f1 = sklearn.metrics.f1_score(y, predicted, average="macro", zero_division=0)
    balanced = np.mean(recall)  # = balanced_accuracy_score, which warns of absent classes
    assert measured == pytest.approx(
        {
            "accuracy": sklearn.metrics.accuracy_score(y, predicted),
            "loss": 1 / 50,
            "macro_f1": macro_f1,
            "worst_class": recall.min(),
            "balanced_accuracy": balanced,
        },
        rel=1e-12,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sklearn_balanced = sklearn.metrics.balanced_accuracy_score(y, predicted)
    assert balanced == pytest.approx(sklearn_balanced, rel=1e-12)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (["accuracy", "f2"], "metrics=[accuracy, f2]: f2 is no metric; choose from accuracy, loss"),
        (["macro_f1"], "must include accuracy, which every result and table has; pass 'metrics=[ac"
         "curacy,macro_f1]'"),
        ([], "pass 'metrics=[accuracy]'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(metrics: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_metrics(metrics)


def test_one_logit_is_two_classes() -> None:
    network = Model(Given(), nn.Linear(1, 1))
    nn.init.ones_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    chunk = Minibatch(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 1, 0]))
    counts = count(network, [chunk], per_sample_losses, 2, CPU)
    assert counts.confusion.tolist() == [[0, 1], [1, 1]]
    assert math.isfinite(counts.loss)
