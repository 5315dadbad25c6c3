"""What is found about images before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishr_exp.data.images.check import Found, examine, of_one_color, unreadable


def examined(*paths: Path) -> list[Found]:
    return examine({"a": {"x": [str(path) for path in paths]}})


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "F"])
def test_images_of_one_color_are_named(tmp_path: Path, mode: str) -> None:
    plain, other = tmp_path / "plain.tif", tmp_path / "other.tif"
    Image.new("L", (40, 30), 255).convert(mode).save(plain)
    varied = Image.new("L", (40, 30), 255)
    varied.putpixel((5, 5), 0)
    varied.convert(mode).save(other)
    (found,) = of_one_color(examined(plain, other))
    assert (found.path, found.color, found.size) == (str(plain), (255, 255, 255), (40, 30))


def test_a_color_is_not_a_level(tmp_path: Path) -> None:
    path = tmp_path / "gradient.png"
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = np.arange(32)  # green and blue stay 0
    Image.fromarray(pixels).save(path)
    assert of_one_color(examined(path)) == []
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    assert [one.color for one in of_one_color(examined(path))] == [(1, 2, 3)]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    found = examined(*(tmp_path / name for name in ("gone.png", "empty.png", "text.png")))
    assert unreadable(found) == found
    assert [one.fault for one in found[:2]] == ["No such file or directory", "the file is empty"]
    assert of_one_color(found) == []
