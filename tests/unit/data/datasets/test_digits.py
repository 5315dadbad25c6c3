"""The embedded datasets: colored and rotated digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fishr_exp.data.datasets.digits as module
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.coloring import colored_domain
from fishr_exp.data.datasets.digits import colored_digits, rotated_digits

ANGLES = [0, 15, 30, 45, 60, 75]


def whole(domain):
    return domain.read(torch.arange(len(domain)))


def originals(x):
    """The set of the originals that images [n, C, 8, 8] show, whatever their color."""
    return {tuple(image) for image in x.sum(1).flatten(1).mul(16).round().int().tolist()}


@pytest.mark.parametrize("file", [module._FILE, Path("elsewhere.csv.gz")])
def test_the_table_is_the_one_of_scikit_learn(file, monkeypatch):
    monkeypatch.setattr(module, "_FILE", file)
    bunch, rows = load_digits(), module._rows()
    assert rows.dtype == bunch.data.dtype
    assert np.array_equal(rows[:, :-1], bunch.data)
    assert np.array_equal(rows[:, -1], bunch.target)
    assert np.array_equal(rows[:, :-1].reshape(-1, 8, 8), bunch.images)


def test_the_file_of_scikit_learn_is_found(monkeypatch):
    monkeypatch.setattr("sklearn.datasets.load_digits", None)  # importing it again would fail
    assert module._rows().shape == (1797, 65)


def test_colored_digits_are_what_they_say():
    domains = colored_digits(seed=0, label_noise=0.25)
    assert list(domains.by_name) == ["plus90", "plus80", "minus90"]
    assert [domain.name for domain in domains.by_name.values()] == list(domains.by_name)
    assert domains.num_classes == 2
    assert domains.input_shape == (2, 8, 8)
    for domain in domains.by_name.values():
        x, y = whole(domain)
        assert x.shape == (599, 2, 8, 8)
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)
        assert set(y.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("name", "agreement"), [("plus90", 0.9), ("plus80", 0.8), ("minus90", 0.1)]
)
def test_the_color_predicts_the_label_by_the_domain_s_rate(name, agreement):
    rates = []
    for seed in range(5):
        x, y = whole(colored_digits(seed=seed, label_noise=0.25).by_name[name])
        lit = x.sum((2, 3)) > 0  # [n, 2]
        assert (lit.sum(1) == 1).all()
        rates.append((lit[:, 1].long() == y).float().mean())
    assert abs(sum(rates) / 5 - agreement) < 0.02  # 3,000 draws: 4 standard deviations at least


def test_a_quarter_of_the_labels_is_noise():
    bunch = load_digits()
    by_original = {
        tuple(image): int(digit)
        for image, digit in zip(
            bunch.images.reshape(-1, 64).astype(int).tolist(), bunch.target, strict=True
        )
    }
    wrong = []
    for domain in colored_digits(seed=0, label_noise=0.25).by_name.values():
        x, y = whole(domain)
        shown = x.sum(1).flatten(1).mul(16).round().int().tolist()
        wrong += [(by_original[tuple(i)] < 5) != bool(t) for i, t in zip(shown, y, strict=True)]
    assert len(wrong) == 1797
    assert abs(sum(wrong) / len(wrong) - 0.25) < 0.03


def test_without_noise_and_flips_the_color_is_the_label():
    digits = torch.arange(10)
    domain = colored_domain(
        "some", torch.ones(10, 2, 2), digits, color_flip=0.0, label_noise=0.0, seed=0
    )
    x, y = whole(domain)
    assert y.tolist() == [1] * 5 + [0] * 5
    assert x[:, 1].amax((1, 2)).tolist() == [1] * 5 + [0] * 5
    assert x[:, 0].amax((1, 2)).tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: colored_digits(seed=seed, label_noise=0.25),
        lambda seed: rotated_digits(seed=seed, angles=[0, 90, 180]),  # right angles lose nothing
    ],
)
def test_no_original_lies_in_two_domains(build):
    shown = []
    for domain in build(0).by_name.values():
        x, _ = whole(domain)
        turned = [torch.rot90(x, k, (2, 3)) for k in range(4)]
        shown.append(set().union(*(originals(t) for t in turned)))
    assert not shown[0] & shown[1]
    assert not shown[0] & shown[2]
    assert not shown[1] & shown[2]


def test_the_seed_alone_decides_and_the_global_stream_is_left_alone():
    state = torch.get_rng_state()
    one = colored_digits(seed=7, label_noise=0.25)
    torch.rand(1)
    two = colored_digits(seed=7, label_noise=0.25)
    other = colored_digits(seed=8, label_noise=0.25)
    for name in one.by_name:
        a, b, c = (whole(d.by_name[name]) for d in (one, two, other))
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert not torch.equal(a.x, c.x)
    torch.set_rng_state(state)
    before = torch.get_rng_state()
    colored_digits(seed=7, label_noise=0.25)
    rotated_digits(seed=7, angles=ANGLES)
    assert torch.equal(before, torch.get_rng_state())


def test_rotated_digits_are_what_they_say():
    domains = rotated_digits(seed=0, angles=ANGLES)
    assert list(domains.by_name) == ["0", "15", "30", "45", "60", "75"]
    assert domains.num_classes == 10
    assert domains.input_shape == (1, 8, 8)
    assert sum(len(domain) for domain in domains.by_name.values()) == 1797
    for domain in domains.by_name.values():
        x, y = whole(domain)
        assert x.shape[1:] == (1, 8, 8)
        assert x.min() == 0
        assert x.max() <= 1
        assert len(set(y.tolist())) == 10


def test_digits_turn_counter_clockwise():
    plain = whole(rotated_digits(seed=0, angles=[0]).by_name["0"])
    turned = whole(rotated_digits(seed=0, angles=[90.0]).by_name["90"])
    assert torch.equal(plain.y, turned.y)
    torch.testing.assert_close(torch.rot90(plain.x, 1, (2, 3)), turned.x)


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_a_noise_that_is_no_probability_names_its_key(noise):
    with pytest.raises(ConfigError, match=r"dataset\.label_noise"):
        colored_digits(seed=0, label_noise=noise)


@pytest.mark.parametrize("angles", [[], [15, 30, 15.0]])
def test_bad_angles_name_their_key(angles):
    with pytest.raises(ConfigError, match=r"dataset\.angles"):
        rotated_digits(seed=0, angles=angles)
