"""Folders that are not domain/class/image, classes that a domain lacks, links, names."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.image_folder import image_folder


def make(root: Path, *folders: str, images: int = 2) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (4, 4), (i, i, i)).save(root / folder / f"{i}.png")
    return root


def build(root: Path, **more: Any) -> Domains:
    return image_folder(root=str(root), name="some", image_size=4, augment=False, **more)


def refused(root: Path, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(root, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line


def labels(domains: Domains) -> dict[str, Sequence[int]]:
    return {n: d.read(torch.arange(len(d))).y.tolist() for n, d in domains.by_name.items()}


def test_a_folder_between_domain_and_class(tmp_path: Path) -> None:
    root = make(tmp_path / "my data", *(f"{d}/images/{c}" for d in "ab" for c in ("bike", "mug")))
    line = refused(root)
    assert "contains one class, images, and at least 2 are needed; if bike, mug are the" in line
    assert f"ln -s '{root}/a/images' LINKS/a, and the same for the other domains" in line
    links = tmp_path / "links"
    links.mkdir()
    for domain in "ab":  # as the message says
        (links / domain).symlink_to(root / domain / "images")
    assert labels(build(links)) == {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}


def test_one_class(tmp_path: Path) -> None:
    line = refused(make(tmp_path, "a/dog", "b/dog"))
    assert "contains one class, dog, and at least 2 are needed; arrange the images as" in line


def test_one_class_by_a_map(tmp_path: Path) -> None:
    root = make(tmp_path, "a/dog", "b/hund")
    assert "contains one class, dog" in refused(root, class_map={"dog": ["dog", "hund"]})


@pytest.mark.parametrize("parts", [("train", "val"), ("Test", "Train"), ("training",)])
def test_parts_of_a_split_are_not_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = make(tmp_path, *(f"{d}/{p}/{c}" for d in "ab" for p in parts for c in ("bed", "pen")))
    line = refused(root)
    said = f"the folders of domain a are parts of a split, not classes: {', '.join(parts)}; merge"
    assert said in line
    assert "dataset=path_lists" in line


def test_classes_may_have_the_names_of_parts(tmp_path: Path) -> None:
    """A train is a vehicle."""
    root = make(tmp_path, *(f"{d}/{c}" for d in "ab" for c in ("train", "bus")))
    assert build(root).num_classes == 2
    other = make(tmp_path / "other", *(f"{d}/{c}" for d in "ab" for c in ("train", "test")))
    mapped = {"train": ["train"], "test": ["test"]}
    assert "dataset.class_map={test: [test], train: [train]}" in refused(other)
    assert labels(build(other, class_map=mapped))["a"] == [0, 0, 1, 1]


# --- classes that a domain lacks -----------------------------------------------------------------


@pytest.fixture
def without_z(tmp_path: Path) -> Path:
    """Domain b has no class z."""
    return make(tmp_path, "a/x", "a/y", "a/z", "b/x", "b/y", "c/x", "c/y", "c/z")


def test_a_class_that_a_domain_lacks_is_refused_with_the_key(without_z: Path) -> None:
    line = refused(without_z)
    assert "the classes of domain b differ from those of domain a: only a has z" in line
    assert line.endswith("dataset.missing_classes=allow")


@pytest.mark.parametrize("lacking", ["b", "a"])  # the first domain does not decide
def test_it_can_be_allowed(without_z: Path, lacking: str, caplog: Any) -> None:
    if lacking == "a":
        (without_z / "a/z").rename(without_z / "b/z")
    with caplog.at_level(logging.WARNING):
        domains = build(without_z, missing_classes="allow")
    assert domains.num_classes == 3
    every = [0, 0, 1, 1, 2, 2]
    assert labels(domains) == dict.fromkeys("abc", every) | {lacking: every[:4]}
    assert caplog.messages == [f"domain {lacking} has no image of class z"]


def test_an_empty_folder_is_a_choice(without_z: Path, caplog: Any) -> None:
    (without_z / "b/z").mkdir()
    assert labels(build(without_z))["b"] == [0, 0, 1, 1]
    assert caplog.messages == ["domain b has no image of class z"]


def test_a_map_is_a_choice(without_z: Path, caplog: Any) -> None:
    domains = build(without_z, class_map={"z": ["z"], "x or y": ["x", "y"]})
    assert labels(domains)["b"] == [1, 1, 1, 1]
    assert caplog.messages == ["domain b has no image of class z"]


def test_nothing_is_said_where_no_class_is_missing(without_z: Path, caplog: Any) -> None:
    make(without_z, "b/z")
    with caplog.at_level(logging.WARNING):
        assert labels(build(without_z)) == labels(build(without_z, missing_classes="allow"))
    assert caplog.messages == []


def test_another_value_of_the_key(without_z: Path) -> None:
    assert refused(without_z, missing_classes="yes").endswith("choose from refuse, allow")


# --- links and names -----------------------------------------------------------------------------


def test_a_link_within_a_class_to_itself(tmp_path: Path) -> None:
    root = make(tmp_path, "a/cat", "a/dog", "b/cat", "b/dog")
    (root / "a/cat/self").symlink_to(".")
    assert "the link a/cat/self leads to a folder that contains it" in refused(root)


def test_a_class_or_domain_that_is_a_link_upward(tmp_path: Path) -> None:
    root = make(tmp_path, "a/cat", "a/dog", "b/cat", "b/dog")
    (root / "b/up").symlink_to("..")
    assert "the link b/up leads to a folder that contains it" in refused(root)
    (root / "b/up").rename(root / "up")
    (root / "up").unlink()
    (root / "up").symlink_to(".")
    assert "the link up leads to a folder that contains it" in refused(root)
    assert list(build(root, domains=["a", "b"]).by_name) == ["a", "b"]


def test_a_domain_that_is_a_link_to_another(tmp_path: Path) -> None:
    root = make(tmp_path, "a/cat", "a/dog", "b/cat", "b/dog")
    (root / "latest").symlink_to("b")
    assert "b/cat and latest/cat contain the same folder" in refused(root)
    assert list(build(root, domains=["a", "latest"]).by_name) == ["a", "latest"]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    root = make(tmp_path, "a/cat", "a/dog", "b/cat", "b/dog")
    os.rename(os.fsencode(root / "b"), os.fsencode(root) + b"/caf\xe9")
    assert list(build(root).by_name) == ["a", "caf\\xe9"]
    assert list(build(root, domains=["caf\\xe9", "a"]).by_name) == ["caf\\xe9", "a"]
    os.rename(os.fsencode(root) + b"/caf\xe9/cat", os.fsencode(root) + b"/caf\xe9/c\xe9t")
    assert "only caf\\xe9 has c\\xe9t, only a has cat" in refused(root)
    cached = build(root, missing_classes="allow", cache=str(tmp_path / "cache"))
    assert labels(cached) == {"a": [1, 1, 2, 2], "caf\\xe9": [0, 0, 2, 2]}
