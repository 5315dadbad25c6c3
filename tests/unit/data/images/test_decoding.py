"""Image files of every kind as red, green and blue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishr_exp.core.errors import TrainingError, printable
from fishr_exp.data.images.decoding import decode, fault


def decoded(path: Path, values: np.ndarray) -> np.ndarray:
    """Write values [h, w] to a file, and read it as levels [h, w]."""
    Image.fromarray(values).save(path)
    pixels = np.asarray(decode(str(path)))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    return tmp_path / "image.tif"


LEVELS = np.arange(256).reshape(16, 16)


def test_floats_between_0_and_1(tif: Path) -> None:
    assert (decoded(tif, (LEVELS / 255).astype(np.float32)) == LEVELS).all()
    halves = np.array([[0.0, 0.5], [0.25, 1.0]], np.float32)
    assert decoded(tif, halves).tolist() == [[0, 128], [64, 255]]


def test_floats_beyond_1_are_levels(tif: Path) -> None:
    assert (decoded(tif, LEVELS.astype(np.float32)) == LEVELS).all()
    rounded = np.array([[-1e-4, 0.5, 1 + 1e-4]], np.float32)
    assert decoded(tif, rounded).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("ends", [(-1, 1), (-3, 300), (0, 1.2), (0, 65535), (-2.1, 2.6)])
def test_floats_on_another_scale_are_refused(tif: Path, ends: tuple[float, float]) -> None:
    Image.fromarray(np.array([ends], np.float32)).save(tif)
    assert "are not in [0, 1] or [0, 255]" in fault(str(tif))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_no_numbers(tif: Path, value: float) -> None:
    Image.fromarray(np.array([[0.5, value]], np.float32)).save(tif)
    assert fault(str(tif)) == "it has pixels that are NaN or infinite"


def test_integers_of_16_bits(tif: Path, tmp_path: Path) -> None:
    every = np.arange(2**16).reshape(256, 256)
    expected = (every / 257).round()  # 65535 / 255
    assert (decoded(tif, every.astype(np.uint16)) == expected).all()
    assert (decoded(tmp_path / "image.png", every.astype(np.uint16)) == expected).all()


def test_16_bits_stay_16_bits_in_a_dark_image(tif: Path, tmp_path: Path) -> None:
    dark = LEVELS.astype(np.uint16)
    for path in (tif, tmp_path / "image.png"):
        assert (decoded(path, dark) == (LEVELS / 257).round()).all()


@pytest.mark.parametrize("white", [255, 65535, 2**31 - 1])
def test_integers_of_32_bits(tif: Path, white: int) -> None:
    values = (LEVELS / 255 * white).round().astype(np.int32)
    assert (decoded(tif, values) == LEVELS).all()


def test_integers_of_an_unknown_depth(tif: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tif)
    with pytest.raises(TrainingError, match="integers up to 70000, have neither 8, 16 nor 32 bits"):
        decode(str(tif))


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    path = f"{tmp_path}/caf\udce9.png"
    Path(path).write_text("no image")
    with pytest.raises(TrainingError) as caught:
        decode(path)
    assert str(caught.value).startswith(f"{tmp_path}/caf\\xe9.png: the image cannot be read (")
    str(caught.value).encode()


def test_printable_leaves_all_else_as_it_is() -> None:
    assert printable("café 猫 \\xe9") == "café 猫 \\xe9"
    assert printable("caf\udce9 \ud800") == "caf\\udce9 \\ud800"  # not from a file's name


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2Jb\x07\x9f\n") == "a\\x1b[2Jb\\x07\\x9f\n"


def test_an_image_above_the_limit_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("1", (40, 25)).save(path)
    assert decode(str(path), 1000).size == (40, 25)
    assert fault(str(path), 999) == "its 40x25 pixels are more than dataset.max_pixels=999"
    with path.open("ab") as file:
        file.truncate(20_000)
    assert "its size is above that of images of dataset.max_pixels=1000" in fault(str(path), 1000)


def test_only_forms_that_pillow_decodes_itself(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (9, 9)).save(path, "EPS")
    assert fault(str(path)).startswith("cannot identify image file")
    Image.new("RGB", (9, 9)).save(path, "WEBP")
    assert fault(str(path)) == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError(3), "KeyError: 3"),
        (NotImplementedError("Unimplemented format 7"), "NotImplementedError: Unimplemented form"),
        (MemoryError(), "MemoryError"),
        (OSError("truncated\nfile"), "truncated"),
    ],
)
def test_whatever_a_decoder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "image.png").touch()
    monkeypatch.setattr(Image, "open", fail)
    assert fault(str(tmp_path / "image.png")).startswith(said)
