"""What is not a file is not opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fishr_exp.core.files import expanded, require_file


def test_a_file_and_a_link_to_one_are_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    require_file(tmp_path / "file")
    require_file(str(tmp_path / "link"))


def test_what_it_is_instead_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "it is a pipe, not a file"),
        (tmp_path, "it is a folder, not a file"),
        ("/dev/null", "it is a device, not a file"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(OSError) as caught:
            require_file(path)
        assert caught.value.strerror == said
        assert os.fspath(caught.value.filename) == os.fspath(path)


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == Path("/home/me/x")
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
