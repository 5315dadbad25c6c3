"""Files under folders, with links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.images.folders import Folders, folders_in, images_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two domains of two classes, with two files in each."""
    root = tmp_path / "root"
    for domain in "ab":
        for kind in ("cat", "dog"):
            folder = root / domain / kind
            folder.mkdir(parents=True)
            for name in ("0.png", "1.png"):
                (folder / name).touch()
    return root


def names(root: Path, folder: str) -> list[str]:
    return [os.path.relpath(path, root) for path in Folders(root).files(root / folder)]


def test_files_are_in_the_order_of_their_paths(root: Path) -> None:
    (root / "a/cat/1").mkdir()
    (root / "a/cat/1/2.png").touch()
    assert names(root, "a/cat") == ["a/cat/0.png", "a/cat/1.png", "a/cat/1/2.png"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_upward_is_refused(root: Path, target: str) -> None:
    (root / "a/cat/deeper").mkdir()
    (root / "a/cat/deeper/up").symlink_to(target)
    with pytest.raises(ConfigError) as caught:
        names(root, "a/cat")
    up = os.path.realpath(root / "a/cat/deeper" / target)
    said = f"the link a/cat/deeper/up leads to a folder that contains it, {up}; remove the link"
    assert str(caught.value) == f"dataset.root={root}: {said}"


@pytest.mark.parametrize("link", ["a/cat/0_before", "a/cat/z_behind"])
def test_a_folder_counts_once_within_a_class(root: Path, link: str) -> None:
    (root / "a/cat/more").mkdir()
    (root / "a/cat/more/2.png").touch()
    (root / link).symlink_to("more")
    assert names(root, "a/cat") == ["a/cat/0.png", "a/cat/1.png", "a/cat/more/2.png"]


def test_a_link_out_of_the_root_is_followed_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/deeper").mkdir(parents=True)
    (tmp_path / "elsewhere/deeper/2.png").touch()
    (root / "a/cat/x").symlink_to(tmp_path / "elsewhere")
    (root / "a/cat/y").symlink_to(tmp_path / "elsewhere/deeper")
    assert names(root, "a/cat")[2:] == ["a/cat/x/deeper/2.png"]


def test_two_links_that_lead_to_each_other_end(root: Path, tmp_path: Path) -> None:
    for one, other in ("xy", "yx"):
        (tmp_path / one).mkdir()
        (tmp_path / one / f"{one}.png").touch()
        (tmp_path / one / "link").symlink_to(tmp_path / other)
    (root / "a/cat/x").symlink_to(tmp_path / "x")
    assert names(root, "a/cat")[2:] == ["a/cat/x/link/y.png", "a/cat/x/x.png"]


def test_a_folder_in_two_classes_is_refused(root: Path) -> None:
    (root / "b/dog/more").symlink_to(root / "a/cat")
    folders = Folders(root)
    folders.files(root / "a/cat")
    with pytest.raises(ConfigError) as caught:
        folders.files(root / "b/dog")
    assert f"a/cat and b/dog contain the same folder, {root / 'a/cat'}; remove" in str(caught.value)


def test_hidden_folders_and_other_files_are_left_out(root: Path) -> None:
    (root / "a/cat/.hidden").mkdir()
    (root / "a/cat/.hidden/2.png").touch()
    (root / "a/.git").mkdir()
    (root / "a/cat/._0.png").touch()
    (root / "a/cat/note.txt").touch()
    files = Folders(root).files(root / "a/cat")
    assert [os.path.basename(path) for path in files] == ["._0.png", "0.png", "1.png", "note.txt"]
    assert [os.path.basename(path) for path in images_of(files)] == ["0.png", "1.png"]
    assert [path.name for path in folders_in(root / "a")] == ["cat", "dog"]
