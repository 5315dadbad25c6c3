"""Digests of names and labels: equal for equal data wherever they are, and told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fishr_exp.core.contracts import Domains
from fishr_exp.data.datasets.image_folder import image_folder
from fishr_exp.data.datasets.torch_dataset import domains_of
from fishr_exp.data.digests import changes, digest_of, digests


def made(root: Path, names: str = "012345") -> Path:
    for domain in "ab":
        for shade, label in enumerate(("x", "y")):
            folder = root / domain / label
            folder.mkdir(parents=True)
            for name in names:
                pixels = np.full((8, 8, 3), 50 * shade + 7 * int(name), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}.png")
    return root


def read(root: Path, **others) -> Domains:
    keywords = {"name": "own", "image_size": 8, "augment": False, "domains": None,
                "class_map": None, "missing_classes": "refuse", "on_bad_image": "error",
                "cache": None, "stored_size": None}  # fmt: skip
    return image_folder(root=str(root), **{**keywords, **others})


def test_a_moved_folder_has_the_same_digests(tmp_path: Path) -> None:
    one = digests(read(made(tmp_path / "one")).by_name)
    other = digests(read(made(tmp_path / "far" / "other")).by_name)
    cached = digests(read(tmp_path / "one", cache=str(tmp_path / "cache")).by_name)
    assert one == other == cached
    assert one["a"].startswith("12 ")


def test_another_name_label_or_number_is_another_digest(tmp_path: Path) -> None:
    before = digests(read(made(tmp_path)).by_name)
    (tmp_path / "a/x/5.png").rename(tmp_path / "a/x/6.png")
    renamed = digests(read(tmp_path).by_name)
    assert changes(before, renamed) == "a has other names or labels"
    (tmp_path / "b/x/0.png").rename(tmp_path / "b/y/9.png")
    moved = digests(read(tmp_path).by_name)
    assert changes(renamed, moved) == "b has other names or labels"
    (tmp_path / "b/x/1.png").unlink()
    fewer = digests(read(tmp_path).by_name)
    assert changes(moved, fewer) == "b has 11 samples, 12 before"
    assert changes(before, before) == ""
    assert changes(before, {"a": before["a"], "c": "1 x"}) == "b is absent, c is new"


def test_a_validation_part_belongs_to_the_digest() -> None:
    labels = torch.tensor([0, 1])
    parts = torch.tensor([True, False]), torch.tensor([False, True])
    found = {digest_of("ab", labels, part) for part in (None, *parts)}
    assert len(found) == 3
    assert digest_of(["ab", "c"], labels) != digest_of(["a", "bc"], labels)


class Own(torch.utils.data.Dataset):
    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 2, 2), self.labels[i]


class WithTargets(Own):
    @property
    def targets(self) -> list[int]:
        return self.labels


def test_datasets_of_ones_own_have_a_digest_where_their_labels_are_at_hand() -> None:
    def of(data: torch.utils.data.Dataset) -> str:
        return digests(domains_of("own", {"a": data}, 2).by_name)["a"]

    def tensors(*labels: int) -> torch.utils.data.Dataset:
        return torch.utils.data.TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor(labels))

    assert of(Own([0, 0, 1])) == "3"
    assert of(WithTargets([0, 0, 1])) == of(tensors(0, 0, 1)) != of(tensors(0, 1, 1))
