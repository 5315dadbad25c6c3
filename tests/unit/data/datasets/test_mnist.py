"""MNIST, colored or rotated."""

from __future__ import annotations

import os
import shutil
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets import mnist
from fishr_exp.data.datasets.rotation import rotate


@pytest.fixture(scope="module")
def root(shared_data):
    path = shared_data / "mnist"
    if not (path / "MNIST" / "raw").is_dir():
        pytest.skip("no real data: ../shared/data/mnist is absent")
    return str(path)


@pytest.fixture(scope="module")
def irm(root):
    return mnist.colored_mnist(root=root, download=False, seed=0)


def whole(domain):
    return domain.read(torch.arange(len(domain)))


def colors(x):
    lit = x.sum((2, 3)) > 0
    assert (lit.sum(1) == 1).all()  # every digit has some ink, in one channel only
    return lit[:, 1].long()


def small_setup(label_noise=0.25, seed=0):
    """The IRM setup on made-up originals whose first pixel is their number: 60 and 20."""
    images = torch.zeros(80, 4, 4, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(1, 81, dtype=torch.uint8)
    images[:, 1, 1] = 255  # left out by the subsampling
    digits = torch.arange(80) % 10
    return mnist._irm_setup(images, digits, test=20, seed=seed, label_noise=label_noise)


def numbers(domain):
    return whole(domain).x.amax((1, 2, 3)).mul(255).round().int().tolist()


def test_irm_setup_deals_the_first_to_training_and_the_last_to_testing():
    by_name = small_setup().by_name
    assert sorted(numbers(by_name["plus80"]) + numbers(by_name["plus90"])) == list(range(1, 61))
    assert numbers(by_name["minus90"]) == numbers(by_name["gray"]) == list(range(61, 81))
    assert len(by_name["plus80"]) == len(by_name["plus90"]) == 30


def test_irm_setup_shuffles_and_takes_even_positions_then_odd_ones():
    by_name = small_setup().by_name
    order = torch.empty(60, dtype=torch.int64)
    order[::2] = torch.tensor(numbers(by_name["plus80"]))
    order[1::2] = torch.tensor(numbers(by_name["plus90"]))
    assert order.tolist() != sorted(order.tolist())
    again = small_setup().by_name
    assert numbers(again["plus80"]) == order[::2].tolist()
    assert numbers(small_setup(seed=1).by_name["plus80"]) != order[::2].tolist()


def test_irm_labels_belong_to_their_images():
    for domain in small_setup(label_noise=0.0).by_name.values():
        digits = (torch.tensor(numbers(domain)) - 1) % 10
        assert torch.equal(whole(domain).y, (digits < 5).long())


def test_irm_domains_have_their_sizes_and_shapes(irm):
    assert list(irm.by_name) == ["plus80", "plus90", "minus90", "gray"]
    assert [len(domain) for domain in irm.by_name.values()] == [25000, 25000, 10000, 10000]
    assert irm.input_shape == (2, 14, 14)
    assert irm.num_classes == 2
    x, y = irm.by_name["gray"].read(torch.tensor([0, 9999]))
    assert x.shape == (2, 2, 14, 14)
    assert 0.9 < x.max() <= 1
    assert set(y.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("name", "agreement"), [("plus80", 0.8), ("plus90", 0.9), ("minus90", 0.1)]
)
def test_irm_colors_agree_with_the_labels_by_the_domain_s_rate(irm, name, agreement):
    x, y = whole(irm.by_name[name])
    assert abs((colors(x) == y).float().mean() - agreement) < 0.01


def test_a_model_of_color_alone_gets_85_in_training_and_10_in_the_test(irm):
    right = {}
    for name in ("plus80", "plus90", "minus90"):
        x, y = whole(irm.by_name[name])
        right[name] = (colors(x) == y).float().mean()
    assert abs((right["plus80"] + right["plus90"]) / 2 - 0.85) < 0.01
    assert abs(right["minus90"] - 0.10) < 0.01


def test_a_perfect_reader_of_digits_gets_75(irm, root):
    data = torchvision.datasets.MNIST(root, train=True)
    truth = (data.targets[50_000:] < 5).long()
    labels = {name: whole(irm.by_name[name]).y for name in ("minus90", "gray")}
    for y in labels.values():
        assert abs((y == truth).float().mean() - 0.75) < 0.01
    both = (labels["minus90"] != labels["gray"]).float().mean()  # 2 * .25 * .75 if independent
    assert abs(both - 0.375) < 0.015


def test_gray_keeps_every_second_pixel_in_both_channels(irm, root):
    data = torchvision.datasets.MNIST(root, train=True)
    x, _ = whole(irm.by_name["gray"])
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], data.data[50_000:, ::2, ::2].float() / 255)


def test_domainbed_colors_all_70000(root):
    domains = mnist.colored_mnist_domainbed(root=root, download=False, seed=0)
    assert list(domains.by_name) == ["plus90", "plus80", "minus90"]
    assert [len(domain) for domain in domains.by_name.values()] == [23334, 23333, 23333]
    assert domains.input_shape == (2, 28, 28)
    for (name, domain), agreement in zip(domains.by_name.items(), (0.9, 0.8, 0.1), strict=True):
        x, y = domain.read(torch.arange(20_000))
        assert abs((colors(x) == y).float().mean() - agreement) < 0.012, name


def test_domainbed_rotates_all_70000(root):
    domains = mnist.rotated_mnist(root=root, download=False, seed=0, angles=[0, 90])
    assert [len(domain) for domain in domains.by_name.values()] == [35000, 35000]
    assert domains.input_shape == (1, 28, 28)
    assert domains.num_classes == 10
    sums = []
    for domain in domains.by_name.values():
        x, y = domain.read(torch.arange(35000))
        assert set(y.tolist()) == set(range(10))
        sums.append(x.sum((1, 2, 3)))
    files = [torchvision.datasets.MNIST(root, train=train).data for train in (True, False)]
    ink = torch.cat(files).sum((1, 2)) / 255  # right angles lose none: every original is there once
    torch.testing.assert_close(torch.cat(sums).sort().values, ink.sort().values, atol=0.01, rtol=0)


@pytest.mark.parametrize("angle", [0, 15, 75.5])
def test_rotation_is_torchvision_s_for_pillow_images(angle):
    images = torch.randint(256, (3, 28, 28), dtype=torch.uint8)
    bilinear = torchvision.transforms.InterpolationMode.BILINEAR
    turned = [
        torchvision.transforms.functional.rotate(
            Image.fromarray(image.numpy()), angle, interpolation=bilinear, fill=(0,)
        )
        for image in images
    ]
    assert torch.equal(rotate(images, angle), torch.from_numpy(np.stack(turned)))


def test_a_root_without_mnist_gets_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        mnist.colored_mnist(root=str(tmp_path / "nowhere"), download=False, seed=0)
    line = str(caught.value)
    assert line.startswith(f"dataset.root={tmp_path / 'nowhere'}: does not contain MNIST/raw")
    assert "dataset.download=true" in line
    assert not (tmp_path / "nowhere").exists()


def test_damaged_files_get_one_line(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for kind in ("train", "t10k"):
        for content in ("images-idx3", "labels-idx1"):
            (raw / f"{kind}-{content}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09\x01")
    with pytest.raises(ConfigError, match=r"^dataset\.root=.*damaged") as caught:
        mnist.rotated_mnist(root=str(tmp_path), download=False, seed=0, angles=[0])
    assert "\n" not in str(caught.value)


def test_a_file_of_another_size_gets_one_line(tmp_path, root):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in os.listdir(f"{root}/MNIST/raw"):
        shutil.copy(f"{root}/MNIST/raw/{file}", raw)
    for content in ("images-idx3", "labels-idx1"):  # the test files in place of the training files
        shutil.copy(raw / f"t10k-{content}-ubyte", raw / f"train-{content}-ubyte")
    with pytest.raises(ConfigError, match="10000 images"):
        mnist.colored_mnist(root=str(tmp_path), download=False, seed=0)


def test_a_download_without_a_network_gets_one_line(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ConfigError, match=r"^dataset\.download=true: ") as caught:
        mnist.colored_mnist(root=str(tmp_path), download=True, seed=0)
    assert "\n" not in str(caught.value)
