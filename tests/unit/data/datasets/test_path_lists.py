"""Images named by lists."""

from __future__ import annotations

import logging
import os

import pytest
import torch
from PIL import Image

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.path_lists import path_lists
from fishr_exp.data.splits import split


@pytest.fixture
def root(tmp_path):
    """Two domains; red level 10 for each image's number."""
    for domain in ("art", "photo"):
        for i in range(5):
            path = tmp_path / "images" / domain / f"a picture {i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(path)
        lines = [f"images/{domain}/a picture {i}.png {1 + i % 3}" for i in range(5)]
        (tmp_path / f"{domain}_train.txt").write_text("# three\n\n" + "\n".join(lines[:3]))
        (tmp_path / f"{domain}_val.txt").write_text("\n".join(lines[3:]) + "\n")
    return tmp_path


LISTS = {"photo": ["photo_train.txt", "photo_val.txt"], "art": ["art_train.txt"]}


def build(root, lists=LISTS, **more):
    return path_lists(root=str(root), lists=lists, name="some", image_size=4, augment=False, **more)


def test_lists_make_domains_in_their_order(root):
    domains = build(root)
    assert list(domains.by_name) == ["photo", "art"]
    assert (domains.num_classes, domains.input_shape) == (3, (3, 4, 4))
    x, y = domains.by_name["photo"].read(torch.tensor([4, 0]))
    assert y.tolist() == [1, 0]  # 2 and 1 in the lists, which count from 1
    assert ((x[:, 0, 0, 0] * 0.229 + 0.485) * 255).round().tolist() == [40, 0]


def test_two_lists_are_the_split(root):
    photo = build(root).by_name["photo"]
    for seed in (0, 1):
        train, validation = split(photo, 0.2, seed)
        assert (train.tolist(), validation.tolist()) == ([0, 1, 2], [3, 4])


def test_one_list_is_split_at_random(root):
    train, validation = split(build(root).by_name["art"], 0.4, 0)
    assert (len(train), len(validation)) == (2, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images/art/none.png 1", "images/art/none.png does not exist; pass the folder that"),
        ("images/art/a picture 0.png", "line 1: expected a path and a whole number, found"),
        ("images/art/a picture 0.png --1", "line 1: expected a path and a whole number, found"),
        ("images/art/a picture 0.png 1.5", "line 1: expected a path and a whole number, found"),
        ("", "contains no images"),
    ],
)
def test_a_line_that_is_wrong_is_named(root, line, said):
    (root / "art_train.txt").write_text(line)
    with pytest.raises(ConfigError) as caught:
        build(root)
    assert str(caught.value).startswith("dataset.lists=")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"art": ["art_train.txt"]}, "at least 2 domains"),
        (
            {"art": ["nowhere.txt"], "photo": ["photo_val.txt"]},
            "=nowhere.txt: does not exist; looked",
        ),
        (
            {"art": ["images"], "photo": ["photo_val.txt"]},
            "images: cannot be read (it is a folder, not a file)",
        ),
        ({"art": ["art_train.txt"] * 3, "photo": ["photo_val.txt"]}, "one list, or two"),
    ],
)
def test_lists_that_are_wrong(root, lists, said):
    with pytest.raises(ConfigError) as caught:
        build(root, lists)
    assert said in str(caught.value)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_bad_images_are_left_out_of_both_parts(root, cache):
    for number in (1, 3):  # of the training and of the validation list
        (root / "images" / "photo" / f"a picture {number}.png").write_bytes(b"no image")
    where = cache and str(root / cache)
    domains = build(root, on_bad_image="skip", cache=where)
    assert domains.skipped == {"photo": 2}
    photo = domains.by_name["photo"]
    train, validation = split(photo, 0.2, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1], [2])
    x, y = photo.read(torch.arange(3))
    assert y.tolist() == [0, 2, 1]
    assert ((x[:, 0, 0, 0] * 0.229 + 0.485) * 255).round().tolist() == [0, 20, 40]


def refused(root, lists, **more):
    with pytest.raises(ConfigError) as caught:
        build(root, lists, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what may stand in a list, and where it may be --------------------------------------------


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text,  # a byte order mark
    lambda text: text.replace(b".png ", b".png\t"),
    lambda text: text.replace(b"\n", b"  \r\n"),
])  # fmt: skip
def test_other_ways_to_write_the_same_list(root, change):
    expected = build(root).by_name["art"].read(torch.arange(3))
    path = root / "art_train.txt"
    lines = path.read_bytes().partition(b"\n\n")[2]
    path.write_bytes(change(lines))
    found = build(root).by_name["art"].read(torch.arange(3))
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)


def test_a_name_that_is_not_utf8(root):
    old = os.fsencode(root) + b"/images/art/a picture 0.png"
    os.rename(old, os.fsencode(root) + b"/images/art/\xe9.png")
    path = root / "art_train.txt"
    path.write_bytes(path.read_bytes().replace(b"a picture 0", b"\xe9"))
    assert len(build(root).by_name["art"]) == 3
    os.unlink(os.fsencode(root) + b"/images/art/\xe9.png")
    assert "art/\\xe9.png does not exist" in refused(root, LISTS)


def test_a_single_list_may_be_a_string(root):
    domains = build(root, {"photo": ["photo_train.txt", "photo_val.txt"], "art": "art_train.txt"})
    assert len(domains.by_name["art"]) == 3
    assert domains.by_name["art"].validation is None


def test_lists_may_lie_in_the_current_folder(root, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    (root / "art_train.txt").rename(here / "art_train.txt")
    assert len(build(root).by_name["art"]) == 3
    (here / "art_train.txt").rename(here / "other.txt")
    line = refused(root, LISTS)
    assert f"looked for {root / 'art_train.txt'} and {here / 'art_train.txt'}; pass" in line


def test_a_list_beside_the_images_is_taken_first(root, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    (here / "art_train.txt").write_text("images/art/a picture 0.png 1\n")
    assert len(build(root).by_name["art"]) == 3


def test_gaps_in_the_labels_are_told(root, caplog):
    path = root / "photo_val.txt"
    path.write_text(path.read_text().replace("png 2", "png 6"))
    with caplog.at_level(logging.WARNING):
        photo = build(root, missing_classes="allow").by_name["photo"]
    assert photo.read(torch.arange(5)).y.tolist() == [0, 1, 2, 0, 3]
    said = "no image has the label 4, 5; the labels 1 to 6 become 0 to 3"
    assert f"dataset.lists: {said}" in caplog.messages


def test_a_label_that_a_domain_lacks(root, caplog):
    path = root / "art_train.txt"
    path.write_text(path.read_text().replace("png 3", "png 1"))
    line = refused(root, LISTS)
    assert "dataset.lists={photo, art}: domain art has no image of class 3; add" in line
    with caplog.at_level(logging.WARNING):
        art = build(root, missing_classes="allow").by_name["art"]
    assert art.read(torch.arange(3)).y.tolist() == [0, 1, 0]
    assert caplog.messages == ["domain art has no image of class 3"]


def test_one_label(root):
    for path in root.glob("*.txt"):
        path.write_text(path.read_text().replace("png 2", "png 1").replace("png 3", "png 1"))
    assert "all images have the label 1, and at least 2 labels are needed" in refused(root, LISTS)


# --- lists as a whole ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (
            {"photo": ["photo_train.txt", "photo_all.txt"], "art": "art_train.txt"},
            "3 images are in the training and in the validation list of domain photo: "
            "{root}/images/photo/a picture 0.png ({root}/photo_train.txt, line 3; "
            "{root}/photo_all.txt, line 1); remove them from one list",
        ),
        (
            {"photo": "photo_all.txt", "art": ["art_train.txt", "photo_val.txt"]},
            "2 images are listed for domain photo and for domain art: "
            "{root}/images/photo/a picture 3.png",
        ),
        (
            {"photo": "photo_twice.txt", "art": "art_train.txt"},
            "an image is listed twice: {root}/images/photo/a picture 0.png "
            "({root}/photo_twice.txt, line 1; {root}/photo_twice.txt, line 6); keep one",
        ),
        (
            {"photo": "photo_labels.txt", "art": "art_train.txt"},
            "an image is listed with two labels: {root}/images/photo/a picture 0.png",
        ),
    ],
)
def test_an_image_that_occurs_twice(root, lists, said):
    every = [f"images/photo/a picture {i}.png {1 + i % 3}\n" for i in range(5)]
    (root / "photo_all.txt").write_text("".join(every))
    (root / "photo_twice.txt").write_text("".join([*every, "images/./photo/a picture 0.png 1"]))
    (root / "photo_labels.txt").write_text("".join([*every, "images/photo/a picture 0.png 2"]))
    assert said.format(root=root) in refused(root, lists)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_missing_images_are_skipped_where_bad_ones_are(root, cache):
    (root / "images/photo/a picture 3.png").unlink()
    line = refused(root, LISTS)
    assert "a picture 3.png does not exist; pass the folder" in line
    assert line.endswith("or skip missing images with dataset.on_bad_image=skip")
    where = cache and str(root / cache)
    domains = build(root, on_bad_image="skip", cache=where)
    assert domains.skipped == {"photo": 1}
    train, validation = split(domains.by_name["photo"], 0.2, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2], [3])


def test_a_wrong_root_is_not_skipped(root):
    lists = {name: [str(root / file) for file in files] for name, files in LISTS.items()}
    line = refused(root / "nowhere", lists, on_bad_image="skip")
    assert "does not exist, the first of 8; pass the folder that the paths are relative to" in line
