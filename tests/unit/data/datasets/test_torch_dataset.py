"""Datasets of others as domains."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.torch_dataset import domains_of
from fishr_exp.data.datasets.wilds import wilds


class Noisy(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + torch.rand(()), 0


def test_any_dataset_is_a_domain():
    x, y = torch.randn(2, 5, 3), torch.randint(4, (2, 5))
    datasets = {name: TensorDataset(x[i], y[i]) for i, name in enumerate("ba")}
    domains = domains_of("mine", datasets, 4)
    assert list(domains.by_name) == ["b", "a"]
    assert (domains.num_classes, domains.input_shape) == (4, (3,))
    read = domains.by_name["a"].read(torch.tensor([4, 0]))
    assert torch.equal(read.x, x[1, [4, 0]])
    assert torch.equal(read.y, y[1, [4, 0]])
    assert read.y.dtype == torch.int64


def test_augmentation_is_a_function_of_its_stream():
    x = torch.zeros(5, 1)
    plain = TensorDataset(x, torch.zeros(5))
    domain = domains_of("mine", {"a": plain}, 1, {"a": Noisy(x)}).by_name["a"]
    indices = torch.tensor([0, 1])
    one, two = (domain.read(indices, torch.Generator().manual_seed(1)).x for _ in range(2))
    assert torch.equal(one, two)
    assert one[0] != one[1]
    assert not domain.read(indices).x.any()


@pytest.fixture
def package(monkeypatch):
    """A stand-in for the package, with what is used of it; the real one has gigabytes of data."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(6)]
    whole = SimpleNamespace(
        metadata_fields=["slide", "hospital", "y"],
        metadata_array=torch.tensor([[i, i % 2, 0] for i in range(6)]),
        y_array=torch.tensor([0, 1, 0, 1, 1, 0]),
        n_classes=2,
        get_input=lambda i: pictures[i],
    )

    def get_dataset(dataset, root_dir, download):
        assert (dataset, download) == ("camelyon17", False)
        if root_dir != "here":
            raise FileNotFoundError("The camelyon17 dataset could not be found")
        return whole

    monkeypatch.setitem(sys.modules, "wilds", SimpleNamespace(get_dataset=get_dataset))
    return pictures


def build(root="here", augment=False):
    return wilds(root=root, name="camelyon17", domain="hospital", image_size=9, augment=augment)


def test_wilds_domains_are_the_values_of_a_field(package):
    domains = build()
    assert list(domains.by_name) == ["hospital_0", "hospital_1"]
    assert (domains.num_classes, domains.input_shape) == (2, (3, 9, 9))
    x, y = domains.by_name["hospital_1"].read(torch.tensor([2, 0]))
    assert y.tolist() == [0, 1]  # images 5 and 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels = (x.permute(0, 2, 3, 1) * std + mean).mul(255).round()
    assert np.array_equal(levels[0].numpy(), np.asarray(package[5]))


def test_wilds_images_are_augmented_in_training_alone(package):
    domain = build(augment=True).by_name["hospital_0"]
    plain = domain.read(torch.tensor([0])).x
    assert torch.equal(plain, build().by_name["hospital_0"].read(torch.tensor([0])).x)
    assert not torch.equal(plain, domain.read(torch.tensor([0]), torch.Generator()).x)


def test_wilds_data_that_are_not_there(package):
    with pytest.raises(ConfigError, match="does not contain camelyon17 of WILDS"):
        build(root="elsewhere")


def test_wilds_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wilds", None)
    with pytest.raises(ConfigError, match="pip install wilds"):
        build()


def test_the_package_itself_reads_its_layout(tmp_path):
    """Camelyon17 as WILDS has it on the disk, but with images that are made up."""
    pytest.importorskip("wilds")
    folder = tmp_path / "camelyon17_v1.0"
    folder.mkdir()
    (folder / "RELEASE_v1.0.txt").touch()
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number in range(8):
        hospital, tumour = divmod(number, 2)
        lines.append(f"{number},{hospital:03},0,{number},0,{tumour},{hospital},{hospital},0")
        name = f"patient_{hospital:03}_node_0"
        (folder / "patches" / name).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (96, 96), (10 * number, 0, 0))
        image.save(folder / "patches" / name / f"patch_{name}_x_{number}_y_0.png")
    (folder / "metadata.csv").write_text("\n".join(lines))
    domains = wilds(
        root=str(tmp_path), name="camelyon17", domain="hospital", image_size=9, augment=False
    )
    assert list(domains.by_name) == [f"hospital_{i}" for i in range(4)]
    x, y = domains.by_name["hospital_3"].read(torch.tensor([0, 1]))
    assert y.tolist() == [0, 1]
    red = (x[:, 0] * 0.229 + 0.485) * 255
    assert torch.allclose(red.mean((1, 2)), torch.tensor([60.0, 70.0]), atol=0.01)
