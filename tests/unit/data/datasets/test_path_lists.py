"""Images named by lists."""

from __future__ import annotations

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
        ({"art": ["nowhere.txt"], "photo": ["photo_val.txt"]}, "nowhere.txt: cannot be read (No"),
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
