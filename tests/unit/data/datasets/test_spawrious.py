"""Spawrious: which images of which backgrounds make up each domain."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from fishr_exp.cli import data as data_cli
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.spawrious import CLASSES, find_spawrious, spawrious

PLACES = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
EACH = 100
# Per variant and class, in alphabetical order: backgrounds of SC_group_1, SC_group_2 and Test.
MANY = {
    "m2m_easy": (("desert", "mountain", "dirt jungle"), ("jungle", "dirt", "desert mountain"),
                 ("mountain", "desert", "jungle dirt"), ("dirt", "jungle", "mountain desert")),
    "m2m_medium": (("beach", "snow", "desert mountain"), ("desert", "mountain", "snow beach"),
                   ("snow", "beach", "mountain desert"), ("mountain", "desert", "beach snow")),
    "m2m_hard": (("dirt", "jungle", "snow beach"), ("beach", "snow", "jungle dirt"),
                 ("jungle", "dirt", "beach snow"), ("snow", "beach", "dirt jungle")),
}  # fmt: skip
# Per variant: the shared background; per class, that of training and that of the test domain.
ONE = {
    "o2o_easy": ("beach", (("desert", "dirt"), ("snow", "jungle"), ("jungle", "snow"),
                           ("dirt", "desert"))),
    "o2o_medium": ("desert", (("mountain", "jungle"), ("jungle", "snow"), ("beach", "dirt"),
                              ("dirt", "beach"))),
    "o2o_hard": ("beach", (("jungle", "mountain"), ("desert", "jungle"), ("mountain", "snow"),
                           ("snow", "desert"))),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The whole tree, with `EACH` empty files in a folder."""
    root = tmp_path_factory.mktemp("spawrious")
    for half in "01":
        for place in PLACES:
            for name in CLASSES:
                folder = root / half / place / name
                folder.mkdir(parents=True)
                for i in range(EACH):
                    (folder / f"{i:03}.png").touch()
    return root


def counted(paths):
    """Return how many images come from each half/background."""
    return Counter("/".join(Path(path).parts[-4:-2]) for path in paths)


@pytest.mark.parametrize("variant", ONE)
def test_one_to_one(root, variant):
    images = find_spawrious(root=str(root), variant=variant)
    assert list(images) == ["Test", "SC_group_1", "SC_group_2"]
    shared, classes = ONE[variant]
    for name, (train, test) in zip(CLASSES, classes, strict=True):
        assert counted(images["Test"][name]) == {f"0/{test}": EACH, f"1/{test}": EACH}
        assert counted(images["SC_group_1"][name]) == {f"0/{train}": 97, f"0/{shared}": 3}
        assert counted(images["SC_group_2"][name]) == {f"1/{train}": 87, f"1/{shared}": 13}
        assert Path(images["SC_group_1"][name][96]).name == "096.png"  # the first by name


@pytest.mark.parametrize("variant", MANY)
def test_many_to_many(root, variant):
    images = find_spawrious(root=str(root), variant=variant)
    for name, (one, two, test) in zip(CLASSES, MANY[variant], strict=True):
        assert counted(images["SC_group_1"][name]) == {f"0/{one}": EACH}
        assert counted(images["SC_group_2"][name]) == {f"0/{two}": EACH}
        assert counted(images["Test"][name]) == {f"0/{place}": EACH for place in test.split()}


@pytest.mark.parametrize("variant", [*ONE, *MANY])
def test_no_image_is_in_two_domains(root, variant):
    images = find_spawrious(root=str(root), variant=variant)
    paths = [path for of in images.values() for own in of.values() for path in own]
    assert len(paths) == len(set(paths))
    assert all(list(of) == list(CLASSES) for of in images.values())


def test_of_whole_folders_the_counts_are_domainbeds(root, monkeypatch):
    monkeypatch.setattr(
        "fishr_exp.data.datasets.spawrious.Folders.files",
        lambda _, p: [f"{p}/{i}.png" for i in range(3168)],
    )
    images = find_spawrious(root=str(root), variant="o2o_easy")
    assert counted(images["SC_group_1"]["corgi"]) == {"0/snow": 3072, "0/beach": 96}
    assert counted(images["SC_group_2"]["corgi"]) == {"1/snow": 2756, "1/beach": 412}


@pytest.fixture
def painted(tmp_path):
    """A tree with two images in a folder, each of its own color."""
    color = 0
    for half in "01":
        for place in PLACES:
            for name in CLASSES:
                folder = tmp_path / "s" / half / place / name
                folder.mkdir(parents=True)
                for i in range(2):
                    color += 1
                    Image.new("RGB", (40, 40), (color, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "s"


def test_it_is_read_as_domains(painted, tmp_path):
    words = {"root": str(painted), "variant": "m2m_hard", "image_size": 8, "augment": True}
    domains = spawrious(**words)
    assert (domains.name, domains.num_classes, domains.input_shape) == (
        "spawrious_m2m_hard", 4, (3, 8, 8),
    )  # fmt: skip
    assert [len(domain) for domain in domains.by_name.values()] == [16, 8, 8]
    minibatch = domains.by_name["SC_group_2"].read(torch.arange(8))
    assert minibatch.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    cache = str(tmp_path / "cache")
    again = spawrious(
        root=str(painted), variant="m2m_hard", image_size=8, augment=True, cache=cache
    )
    assert torch.equal(again.by_name["SC_group_2"].read(torch.arange(8)).x, minibatch.x)


def test_check_and_prepare(painted, capsys, tmp_path):
    assert data_cli.main(["check", "spawrious", str(painted), "dataset.variant=m2m_easy"]) == 1
    out = capsys.readouterr().out
    assert "a variant of Spawrious has 50688 images, but 32 were found" in out
    rows = [line.split()[:3] for line in out.splitlines()[2:5]]
    assert rows == [["Test", "16", "4"], ["SC_group_1", "8", "4"], ["SC_group_2", "8", "4"]]
    cache = f"dataset.cache={tmp_path / 'cache'}"
    assert data_cli.main(["prepare", "spawrious", str(painted), cache]) == 0
    assert [p.name.rsplit("-", 2)[0] for p in sorted((tmp_path / "cache").glob("*.pixels"))] == [
        "spawrious_o2o_easy-SC_group_1", "spawrious_o2o_easy-SC_group_2", "spawrious_o2o_easy-Test",
    ]  # fmt: skip


def test_mistakes_name_what_is_allowed(painted):
    with pytest.raises(ConfigError, match=r"dataset\.variant=hard: choose from o2o_easy, o2o_med"):
        find_spawrious(root=str(painted), variant="hard")
    with pytest.raises(ConfigError, match=r"has no images at 0/dirt/bulldog; pass the folder"):
        find_spawrious(root=str(painted.parent), variant="o2o_easy")
