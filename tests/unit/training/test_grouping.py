"""Groups within an optimizer: the classifier's rate, what does not decay, what does nothing."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model, Objective, trainable
from fishr_exp.core.errors import ConfigError
from fishr_exp.trainers.erm import Erm
from fishr_exp.training.arguments import Grouping
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.loop import Training
from fishr_exp.training.step import optimizer_step

from .test_step import Own, batch, both, model

ADAMW = functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)


def training(network: Model, trainer=None, optimizer=ADAMW, **keys) -> Training:
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    return Training(network, trainer or Erm(), optimizer, observer, grouping=Grouping(**keys))


def settings_of(of: Training, player: str = "model") -> dict[int, tuple[float, float]]:
    groups = of.players[player].optimizer.param_groups
    return {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_by_default_there_is_one_group() -> None:
    assert len(training(model()).players["model"].optimizer.param_groups) == 1


def test_the_classifier_has_a_rate_of_its_own_and_norms_and_biases_do_not_decay() -> None:
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm([2, 2]))
    network = Model(body, nn.Linear(4, 2))
    found = settings_of(training(network, classifier_lr_factor=10, decay_norms_and_biases=False))
    assert {name: found[id(p)] for name, p in network.named_parameters()} == {
        "featurizer.0.weight": (0.1, 0.5), "featurizer.0.bias": (0.1, 0.0),
        "featurizer.1.weight": (0.1, 0.0), "featurizer.1.bias": (0.1, 0.0),
        "featurizer.2.weight": (0.1, 0.0), "featurizer.2.bias": (0.1, 0.0),
        "classifier.weight": (1.0, 0.5), "classifier.bias": (1.0, 0.0),
    }  # fmt: skip


def test_groups_of_a_method_are_divided_further_and_keep_what_they_have() -> None:
    def groups(trainer: Own, network: Model):
        first = {"params": trainable(network), "lr_factor": 0.5}
        return {"model": [first], "own": [{"params": trainable(trainer), "weight_decay": 0.25}]}

    network = model()
    trainer = Own(both, groups)
    found = training(network, trainer, classifier_lr_factor=10, decay_norms_and_biases=False)
    assert settings_of(found)[id(network.featurizer.weight)] == (0.05, 0.5)
    assert settings_of(found)[id(network.classifier.weight)] == (0.5, 0.5)
    assert settings_of(found, "own")[id(trainer.own.weight)] == (0.1, 0.25)
    assert settings_of(found, "own")[id(trainer.own.bias)] == (0.1, 0.0)


def test_given_directions_still_find_their_parameters() -> None:
    """They come in the order of the player's parameters, which is not that of the groups."""

    def given(trainer: Own, network: Model, batch, step) -> Objective:
        found = both(trainer, network, batch, step)
        return found._replace(
            gradients=[torch.full_like(p, i) for i, p in enumerate(trainable(network, trainer))]
        )

    network, trainer = model(), Own(given)
    sgd = functools.partial(torch.optim.SGD, lr=1.0, weight_decay=1e-9)
    found = training(network, trainer, sgd, classifier_lr_factor=2, decay_norms_and_biases=False)
    before = [p.detach().clone() for p in trainable(network, trainer)]
    optimizer_step(trainer, network, found.players, batch(), 0)
    moved = [
        float((a - b.detach()).mean())
        for a, b in zip(before, trainable(network, trainer), strict=True)
    ]
    assert moved == pytest.approx([0, 1, 4, 6, 4, 5], abs=1e-6)  # the classifier's twice as far


def test_a_reset_keeps_the_groups() -> None:
    trainer = Erm()
    trainer.resets = {0: {"lr": 0.2}}
    network = model()
    found = training(network, trainer, classifier_lr_factor=10)
    found.reset_optimizers()
    assert settings_of(found)[id(network.classifier.weight)][0] == 2.0
    assert settings_of(found)[id(network.featurizer.weight)][0] == 0.2


def test_what_does_nothing_is_refused() -> None:
    frozen = model()
    frozen.classifier.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"classifier_lr_factor=2: no optimizer trains the class"):
        training(frozen, classifier_lr_factor=2)
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    said = "decay_norms_and_biases=false: there is no weight decay to leave out; pass optimizer"
    with pytest.raises(ConfigError, match=said):
        training(model(), optimizer=adam, decay_norms_and_biases=False)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf")])
def test_a_factor_is_positive(factor: float) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.classifier_lr_factor=.*must be more than 0"):
        Grouping(classifier_lr_factor=factor)
