"""What the loop says of an epoch, and what it measures of waiting."""

from __future__ import annotations

import functools
import os
import signal
import threading

import numpy as np
import pytest
import torch

from fishr_exp.core.errors import Stopped
from fishr_exp.data.images import threads
from fishr_exp.data.images.decoding import Picture
from fishr_exp.data.images.domain import ImageDomain
from fishr_exp.data.minibatches import Minibatches, loader
from fishr_exp.models.mlp import mlp
from fishr_exp.runs.records import Evaluation, Scores
from fishr_exp.trainers.erm import Erm
from fishr_exp.training import loop
from fishr_exp.training.checkpoint import Interval
from fishr_exp.training.early_stopping import EarlyStopping
from fishr_exp.training.loop import Training, fit
from fishr_exp.training.signals import Signals


def record(epoch=2, step=0.1, waiting=0.0):
    return Evaluation(
        epoch=epoch, step=8, losses={"risk": 1.0}, scores=Scores({}, {"validation_accuracy": 0.5}),
        seconds_per_step=step, seconds_waiting_per_step=waiting, learning_rate=0.1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"waiting": 0.03}, "30 % of it waiting for data (num_workers)"),
        ({"waiting": 0.005}, None),
        ({"waiting": 0.03, "epoch": 1}, None),  # starting up
        ({"waiting": 0.004, "step": 0.008}, None),  # too short to matter
    ],
)
def test_much_waiting_is_said(of, said):
    line = loop._line(record(**of), 9, 90, best=False)
    assert ("waiting" in line) == (said is not None)
    assert said is None or said in line


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_waiting_is_measured_and_survives_a_checkpoint(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])

    def slowly(count):
        for _ in range(count):
            clock.now += 0.25
            yield loop.Minibatch(x.clone(), y)

    real = loop.optimizer_step

    def step(*arguments):
        clock.now += 0.75
        return real(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", step)
    network = mlp(
        input_shape=(1, 2, 2), num_classes=2, hidden=3, hidden_layers=1, single_logit=False
    )
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    make = functools.partial(torch.optim.SGD, lr=0.1)
    training = Training(network, Erm(), make, observer)
    scores = Scores({}, {})
    records, states = [], []
    with Signals() as signals:
        fit(
            training, [slowly(2)], lambda: (scores, None),
            lambda r, _: records.append(r), lambda: states.append(training.state_dict()),
            Interval("1"), signals, total_steps=2, steps_per_epoch=2, title="a run",
        )  # fmt: skip
    assert records[0].seconds_per_step == 1.0
    assert records[0].seconds_waiting_per_step == 0.25
    halfway = states[0]
    assert halfway["waited"] == 0.25
    training.load_state_dict(halfway)
    assert (training.step, training.waited) == (1, 0.25)
    del halfway["waited"]  # as an earlier version left it
    training.load_state_dict(halfway)
    assert training.waited == 0.0


class Unreadable:
    """Images of which the first minibatch can be read; then a signal comes, and nothing more."""

    def __init__(self):
        self.go_on = threading.Event()
        self.reads = 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.reads += 1
        if self.reads == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.reads > 4:
            self.go_on.wait()
        return Picture(np.full((2, 2, 3), 9 * i, np.uint8), (2, 2))


def test_a_signal_is_handled_while_a_minibatch_is_awaited(monkeypatch):
    """The wait would be endless, and the last step is saved."""
    monkeypatch.setattr(threads, "PATIENCE", 0.01)
    pictures = Unreadable()
    labels = torch.tensor([0, 1, 0, 1])
    domain = ImageDomain("a", pictures, labels, image_size=2, augment=False)
    stream = Minibatches(domain, torch.arange(4), None, seed=0)
    network = mlp(
        input_shape=(3, 2, 2), num_classes=2, hidden=3, hidden_layers=1, single_logit=False
    )
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    make = functools.partial(torch.optim.SGD, lr=0.1)
    training = Training(network, Erm(), make, observer)
    saved = []

    def train():
        with Signals() as signals:
            fit(
                training, [loader(stream, 0, 9, num_workers=1)], lambda: (Scores({}, {}), None),
                lambda *_: None, lambda: saved.append(training.step),
                Interval("99"), signals, total_steps=9, steps_per_epoch=9, title="a run",
            )  # fmt: skip

    with pytest.raises(Stopped) as stopped:
        train()
    pictures.go_on.set()
    assert stopped.value.signal == signal.SIGTERM
    assert saved == [1]


class Late(Erm):
    """The model moves from a step on, and a second player never."""

    def __init__(self, begins):
        super().__init__()
        self.begins, self.own = begins, torch.nn.Linear(1, 1)

    def players(self, model):
        return {"early": [*self.own.parameters()], "model": [*model.parameters()]}

    def objective(self, model, batch, step):
        found = super().objective(model, batch, step)
        if step >= self.begins:
            return found
        own = sum(parameter.square().sum() for parameter in self.own.parameters())
        return found._replace(total=own, player="early")


@pytest.mark.parametrize(("begins", "warned"), [(2, []), (9, ["model", "model"])])
def test_a_player_that_is_never_updated_is_warned_of(begins, warned, caplog):
    """After the third evaluation, and at the end: some begin late."""
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    network = mlp(
        input_shape=(1, 2, 2), num_classes=2, hidden=3, hidden_layers=1, single_logit=False
    )
    observer = EarlyStopping("risk", "min", None, 0.0, "last")
    training = Training(network, Late(begins), functools.partial(torch.optim.SGD, lr=0.1), observer)
    with Signals() as signals:
        fit(
            training, [[loop.Minibatch(x.clone(), y) for _ in range(4)]],
            lambda: (Scores({}, {}), None), lambda *_: None, lambda: None,
            Interval(None), signals, total_steps=4, steps_per_epoch=1, title="a run",
        )  # fmt: skip
    found = [r.args[0] for r in caplog.records if "no objective has updated player" in r.msg]
    assert found == warned
