"""SWAD's choice of segments, against slow re-statements of its rules on random losses."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.averaging.swad import Swad


def model() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)).double()


def published(losses: list[float], n_c: int, n_t: int, r: float) -> tuple[list[int], bool, int]:
    """The segments in the mean, whether the valley ended, and the number of evaluations made.

    With whole windows of (number, loss), as the paper's code has them. The first of the segments
    found in step 2 is overwritten by the one after it.
    """
    converge: list[tuple[int, float]] = []
    smooth: list[tuple[int, float]] = []
    first, threshold, picked = None, 0.0, []
    for number, loss in enumerate(losses):
        converge = [*converge, (number, loss)][-n_c:]
        smooth = [*smooth, (number, loss)][-n_t:]
        if first is None:
            if len(converge) == n_c and min(converge, key=lambda item: item[1]) == converge[0]:
                first = converge[0][0]
                threshold = (1 + r) * sum(loss for _, loss in converge) / n_c
                if n_t < n_c:
                    picked = [number for number, _ in converge[1 : 1 + n_c - n_t]]
                elif n_t > n_c:
                    window = smooth[: n_t - n_c + 1]
                    high = [place for place, item in enumerate(window) if item[1] > threshold]
                    begin = high[-1] + 1 if high else 0
                    picked = [number for number, _ in window[begin + 1 :]]
        elif smooth[0][0] >= first:
            if min(loss for _, loss in smooth) > threshold:
                return picked or [first], True, number + 1
            picked.append(smooth[0][0])
    if first is None:
        return [len(losses) - 1], False, len(losses)
    rest = smooth[1:]
    while rest and min(loss for _, loss in rest) <= threshold:
        picked.append(rest.pop(0)[0])
    return picked or [first], False, len(losses)


def intended(losses: list[float], n_c: int, n_t: int, r: float) -> tuple[list[int], bool, int]:
    """The same from the docstring: one stretch of segments, each once."""
    found = [
        i
        for i in range(n_c - 1, len(losses))
        if losses[i - n_c + 1] == min(losses[i - n_c + 1 : i + 1])
    ]
    if not found:
        return [len(losses) - 1], False, len(losses)
    a, at = found[0] - n_c + 1, found[0]
    threshold = (1 + r) * sum(losses[a : at + 1]) / n_c
    if n_t > n_c:
        begin = a
        while begin > max(0, at - n_t + 1) and losses[begin - 1] <= threshold:
            begin -= 1
        end = a
    else:
        begin, end = a, a + n_c - n_t
    for now in range(at + 1, len(losses)):
        oldest = max(0, now - n_t + 1)
        if oldest >= a:
            if min(losses[oldest : now + 1]) > threshold:
                return list(range(begin, end + 1)), True, now + 1
            end = max(end, oldest)
    for left in range(max(0, len(losses) - n_t) + 1, len(losses)):
        if min(losses[left:]) > threshold:
            break
        end = max(end, left)
    return list(range(begin, end + 1)), False, len(losses)


def sequence(draw: random.Random) -> list[float]:
    """Losses that fall, and may rise again."""
    fall, noise, rise = (
        draw.choice([0, 0.2, 0.5]),
        draw.choice([0.02, 0.2, 0.5]),
        draw.choice([0, 0.03]),
    )
    return [
        1 / (1 + fall * i) + noise * draw.random() + rise * i for i in range(draw.randint(1, 25))
    ]


@pytest.mark.parametrize(("convention", "rule"), [("published", published), ("intended", intended)])
def test_the_segments_of_random_losses(convention, rule) -> None:
    ends = {"valley": 0, "steps": 0}
    for trial in range(300):
        draw = random.Random(trial)
        torch.manual_seed(trial)
        n_c, n_t, r = (3, 6, 0.3) if trial % 2 else (draw.randint(1, 5), draw.randint(1, 8), 0.05)
        losses, network = sequence(draw), model()
        segments, expected_ends = [], []
        scheme = Swad(n_c, n_t, r, convention)
        scheme.prepare(network)
        step = 0
        for loss in losses:
            weights = []
            for _ in range(draw.randint(1, 3)):
                step += 1
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter.add_(torch.randn_like(parameter))
                scheme.after_step(network, step)
                weights.append([p.detach().clone() for p in network.parameters()])
            segments.append([sum(ws) / len(ws) for ws in zip(*weights, strict=True)])
            expected_ends.append(step)
            scheme.after_evaluation({"validation_loss": loss, "validation_accuracy": 0.5})
            if scheme.stop:
                break
        picked, ended, made = rule(losses, n_c, n_t, r)
        assert (scheme.stop, len(segments)) == (ended, made), trial
        ends["valley" if ended else "steps"] += 1
        for _ in range(2):  # asking again changes nothing
            averaged, last = scheme.selected(network)
            assert last == expected_ends[picked[-1]], trial
            chosen = zip(*(segments[number] for number in picked), strict=True)
            for got, own in zip(averaged.parameters(), chosen, strict=True):
                torch.testing.assert_close(got, sum(own) / len(own), rtol=0, atol=1e-12)
    assert min(ends.values()) > 10


def test_the_quirks_of_the_published_code() -> None:
    """A valley from the start: 0 is overwritten in step 2, which counts 1 and 2, after a, early.

    Step 3 then counts 0 three times, until there are n_t segments, and 1 and 2 again.
    """
    losses = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    assert published(losses, 3, 6, 0.3)[0] == [1, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert intended(losses, 3, 6, 0.3)[0] == [*range(8)]


def test_the_current_weights_are_evaluated_and_the_buffers_stay() -> None:
    network, scheme = model(), Swad(1, 1)
    scheme.prepare(network)
    scheme.after_step(network, 1)
    network.featurizer[1].running_mean.fill_(3.0)
    scheme.after_evaluation({"validation_loss": 1.0})
    assert scheme.averaged(network) is network
    averaged, last = scheme.selected(network)
    assert averaged is not network
    assert last == 1
    assert averaged.featurizer[1].running_mean[0] == 3
    assert not any(p.requires_grad for p in averaged.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_weights_in_another_memory_format() -> None:
    """As `channels_last` lays them out."""
    network = Model(nn.Conv2d(2, 3, 3), nn.Linear(4, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scheme = Swad(1, 1)
    scheme.prepare(network)
    scheme.after_step(network, 1)
    scheme.after_evaluation({"validation_loss": 1.0})
    averaged, _ = scheme.selected(network)
    assert torch.equal(averaged.featurizer.weight, network.featurizer.weight)
    assert averaged.featurizer.weight.is_contiguous(memory_format=torch.channels_last)


def test_state_goes_through_a_checkpoint_at_any_step() -> None:
    draw = random.Random(4)
    losses = [1.0, 0.7, 0.5, 0.6, 0.55, 0.52, 0.51, 0.9, 0.9, 0.6]
    network, scheme = model(), Swad()
    scheme.prepare(network)
    for number, loss in enumerate(losses):
        for inner in range(2):
            with torch.no_grad():
                network.classifier.weight.add_(draw.random())
            scheme.after_step(network, 2 * number + inner + 1)
            other = Swad()
            other.prepare(model())
            other.load_state_dict(copy.deepcopy(scheme.state_dict()))
            scheme = other
        scheme.after_evaluation({"validation_loss": loss})
    whole, again = Swad(), model()
    whole.prepare(again)
    draw = random.Random(4)
    for number, loss in enumerate(losses):
        for inner in range(2):
            with torch.no_grad():
                again.classifier.weight.add_(draw.random())
            whole.after_step(again, 2 * number + inner + 1)
        whole.after_evaluation({"validation_loss": loss})
    (one, end), (two, last) = scheme.selected(network), whole.selected(again)
    assert end == last
    assert torch.equal(one.classifier.weight, two.classifier.weight)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_converge": 0}, {"n_tolerance": 0}, {"n_tolerance": 10**19}, {"tolerance_ratio": -0.1},
        {"tolerance_ratio": float("inf")}, {"tolerance_ratio": float("nan")},
        {"convention": "paper"}, {"batch_norm_steps": -1},
    ],
)  # fmt: skip
def test_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"averaging.{next(iter(wrong))}="):
        Swad(**wrong)
