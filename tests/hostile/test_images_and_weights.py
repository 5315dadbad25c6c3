"""Attacks by data: image files, their folders and lists, caches of decoded images, and weights.

Of every attack: no traceback, one line that names the file and the way out, no wait without end,
and what is beside it is read as before.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import socket
import struct
import subprocess
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import nn

from fishr_exp.cli import data as data_cli
from fishr_exp.core.contracts import Model
from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.datasets.image_folder import find_images, image_folder
from fishr_exp.data.datasets.path_lists import images_in_lists, path_lists
from fishr_exp.data.datasets.spawrious import find_spawrious
from fishr_exp.data.images.cache import _HEAD
from fishr_exp.data.images.check import Found, examine, unreadable
from fishr_exp.data.images.decoding import decode, fault
from fishr_exp.models import backbone
from fishr_exp.models.weights import read_state
from tests.e2e.conftest import Command

HOSTILE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "hostile"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two domains of two classes, two images each."""
    draw = np.random.default_rng(0)
    root = tmp_path / "root"
    for domain in ("art", "photo"):
        for kind in ("cat", "dog"):
            (root / domain / kind).mkdir(parents=True)
            for i in range(2):
                pixels = draw.integers(0, 256, (16, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / kind / f"{i}.png")
    return root


def build(root: Path, **changes: Any) -> Any:
    arguments = {"root": str(root), "name": "some", "image_size": 8, "augment": False}
    return image_folder(**{**arguments, **changes})


def told_by(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return the line of the error that a call raises, if any, and what it returns."""
    try:
        return "", call()
    except ConfigError as error:
        return one_line(error), None


def one_line(error: BaseException) -> str:
    line = " ".join(str(error).split())
    assert line.isprintable(), line
    assert len(line) < 3000
    return line


# ------------------------------------------------------------------------------------------ images


def written(
    form: str, mode: str = "RGB", size: tuple[int, int] = (20, 16), **options: Any
) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(
    width: int, height: int, *extra: bytes, pixels: bytes | None = None, depth: int = 1
) -> bytes:
    """A gray PNG of any stated size, by default of zeros, which take no space."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    if pixels is None:
        pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", head, *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    )


def tiff(**tags: tuple[int, int, int]) -> bytes:
    """A little TIFF with these tags: number, type and value of each."""
    entries = b"".join(struct.pack("<HHII", *tag[:2], 1, tag[2]) for tag in tags.values())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4000)


def sized_tiff(width: int, height: int, **more: tuple[int, int, int]) -> bytes:
    return tiff(
        width=(256, 4, width), height=(257, 4, height), bits=(258, 3, 8), packing=(259, 3, 1),
        photometric=(262, 3, 1), offset=(273, 4, 200), rows=(278, 4, height), count=(279, 4, 3000),
        **more,
    )  # fmt: skip


def bmp(width: int, height: int) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return screen + frame


def jpeg_of(width: int, height: int) -> bytes:
    content = bytearray(written("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


ZEROS = zlib.compress(bytes(100_000_000), 9)  # 100 kB
BAD_IMAGES: dict[str, bytes] = {
    "an empty file": b"",
    "text": b"hello",
    "a web page": b"<!doctype html><html><body>moved</body></html>",
    "random bytes": random.Random(0).randbytes(5000),
    "zeros": bytes(10_000),
    "a PNG of 13000x13000 in 20 kB": png(13000, 13000),
    "a PNG of 2^31-1 x 2^31-1": png(2**31 - 1, 2**31 - 1, pixels=b""),
    "a PNG of no pixels": png(0, 0, pixels=b""),
    "a PNG without width": png(0, 10, pixels=b""),
    "a PNG without pixels": png(10, 10, pixels=b""),
    "a PNG of depth 77": png(10, 10, depth=77),
    "a PNG cut after its header": png(10, 10)[:40],
    "a PNG that is cut off": written("PNG")[:-40],
    "a PNG with a wrong checksum": png(10, 10)[:30] + b"xxxx" + png(10, 10)[34:],
    "a PNG with 100 MB of text": png(10, 10, chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "a BMP of 2^31-1 x 2^31-1": bmp(2**31 - 1, 2**31 - 1),
    "a BMP of a negative width": bmp(-5, 5),
    "a BMP without pixels": bmp(10, 10),
    "a GIF of 65535x65535": gif(65535, 65535),
    "a GIF without frames": b"GIF89a" + bytes(20),
    "a JPEG of 65500x65500": jpeg_of(65500, 65500),
    "a JPEG that is cut off": written("JPEG")[:-90],
    "a JPEG of a header": written("JPEG")[:20],
    "a WebP that is cut off": written("WEBP")[:-30],
    "a WebP of a header": b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(10),
    "a TIFF of 2^32-1 x 2^32-1": sized_tiff(2**32 - 1, 2**32 - 1),
    "a TIFF of tiles of 60000x60000": tiff(
        width=(256, 4, 10), height=(257, 4, 10), bits=(258, 3, 8), packing=(259, 3, 5),
        photometric=(262, 3, 1), tile_width=(322, 4, 60000), tile_height=(323, 4, 60000),
        offset=(324, 4, 300), count=(325, 4, 3000)),
    "a TIFF whose folder is itself": b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0",
    "a TIFF without tags": tiff(),
    "a PPM of 10^9 x 10^9": b"P6 1000000000 1000000000 255\n" + bytes(100),
    "a PPM without pixels": b"P6 0 0 255\n",
    "a PPM of a size with 5000 digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
    "a PPM of level 0": b"P5 2 2 0\n" + bytes(4),
    "a JPEG 2000 of a header": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "an AVIF of a header": b"\0\0\0\x1cftypavif" + bytes(100),
    "a DDS": b"DDS " + struct.pack("<I", 124) + bytes(200),
    "an EPS, which starts Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    "a PSD": b"8BPS\0\x01" + bytes(100),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "an ICO of a PNG": b"\0\0\1\0\1\0" + bytes(16) + png(10, 10),
    "a QOI": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 4, 0) + bytes(20),
    "an XBM": b"#define a_width 99999\n#define a_height 99999\nstatic char a_bits[] = {\n0x00};\n",
    "a FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "a zip": b"PK\x03\x04" + bytes(200),
    "a PDF": b"%PDF-1.7\n" + bytes(100),
    "a program": b"\x7fELF" + bytes(200),
    "a pickle that runs a program": pickle.dumps(print),
}  # fmt: skip


def place(kind: str, path: Path) -> None:
    """Put something else than a file there."""
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a terminal":
        path.symlink_to("/dev/tty")
    elif kind == "a link to nothing":
        path.symlink_to("nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    else:
        assert kind == "a file of 4 TB"
        with path.open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            file.truncate(1 << 42)


NO_FILES = ("a pipe", "a socket", "a device", "a terminal", "a link to nothing",
            "a link to itself", "a file of 4 TB")  # fmt: skip


def put(attack: str, path: Path) -> None:
    if attack in BAD_IMAGES:
        path.write_bytes(BAD_IMAGES[attack])
    else:
        place(attack, path)


def test_all_bad_images_at_once(root, capsys) -> None:
    attacks = [*BAD_IMAGES, *NO_FILES]
    for i, attack in enumerate(attacks):
        put(attack, root / "art" / "cat" / f"bad{i}.png")
    status = data_cli.main(["check", "image_folder", str(root)])
    out, err = capsys.readouterr()
    assert (status, err) == (1, "")
    assert out.splitlines()[2].split()[1:6] == [str(len(attacks) + 4), "2", "dog", "(2)",
                                                str(len(attacks))]  # fmt: skip
    assert build(root, on_bad_image="skip").skipped == {"art": len(attacks)}


@pytest.mark.parametrize("attack", [*BAD_IMAGES, *NO_FILES])
def test_a_bad_image(attack, root) -> None:
    """`check` names it; `skip` leaves it out, also from a cache; `error` is one line."""
    bad = root / "art" / "cat" / "bad.png"
    put(attack, bad)
    why = fault(str(bad))
    assert why
    assert why.isprintable()
    (found,) = unreadable(examine(find_images(root=str(root))))
    assert (found.path, found.size) == (str(bad), (0, 0))
    with pytest.raises(TrainingError) as caught:
        build(root).by_name["art"].read(torch.tensor([2]))
    said = f"{bad}: the image cannot be read ({why}); repair it, or skip such images with"
    assert one_line(caught.value).startswith(said)
    cache = str(root.parent / "cache")
    with pytest.raises(ConfigError) as refused:
        build(root, cache=cache)
    assert "1 image cannot be read, the first: " in one_line(refused.value)
    for where in (None, cache):
        domains = build(root, on_bad_image="skip", cache=where)
        assert domains.skipped == {"art": 1}
        assert len(domains.by_name["art"]) == 4


GOOD_IMAGES: dict[str, bytes] = {
    "one pixel": png(1, 1),
    "a line of 60,000 pixels": png(60_000, 1),
    "a column of 60,000 pixels": png(1, 60_000),
    "another form than its name": written("GIF"),
    "CMYK": written("JPEG", "CMYK"),
    "a palette": written("PNG", "P"),
    "black and white": written("TIFF", "1"),
    "transparency": written("PNG", "RGBA"),
    "bytes after its end": written("PNG") + bytes(10_000),
    "another file after its end": written("PNG") + b"PK\x03\x04<script>",
    "a chunk that nobody knows": png(9, 9, chunk(b"abCd", bytes(3000))),
    "text that controls a terminal": png(9, 9, chunk(b"tEXt", b"Title\0\x1b[2J\x07")),
    "an orientation that is none": written(
        "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63" + bytes(7)),
    "EXIF data of zeros": written("JPEG", exif=b"Exif\0\0" + bytes(500)),
    "a color profile of random bytes": written("PNG", icc_profile=random.Random(1).randbytes(3000)),
    "20 frames": written("GIF", save_all=True, append_images=[Image.new("RGB", (20, 16))] * 20),
}  # fmt: skip


@pytest.mark.parametrize("attack", GOOD_IMAGES)
def test_an_odd_image_that_is_read(attack, root) -> None:
    (root / "art" / "cat" / "odd.png").write_bytes(GOOD_IMAGES[attack])
    domain = build(root, augment=True).by_name["art"]
    assert domain.read(torch.tensor([2])).x.isfinite().all()
    assert domain.read(torch.tensor([2]), torch.Generator().manual_seed(0)).x.isfinite().all()


FELL_SHORT = ["image-AVIF-RuntimeError.jpg", "image-DDS-NotImplementedError.jpg", "bomb13000.png"]


@pytest.mark.parametrize("name", FELL_SHORT)
def test_the_images_that_fell_short_before(name) -> None:
    if not (HOSTILE / name).exists():
        pytest.skip("../shared is absent")
    assert fault(str(HOSTILE / name))


def test_the_limit_on_pixels_can_be_raised(root) -> None:
    (root / "art" / "cat" / "large.png").write_bytes(png(2000, 1000))
    tight = {"max_pixels": 1_999_999, "on_bad_image": "skip"}
    cache = str(root.parent / "cache")
    for where in (None, cache):
        assert build(root, **tight, cache=where).skipped == {"art": 1}
        assert build(root, max_pixels=2_000_000, cache=where).by_name["art"].read(torch.tensor([2]))
    with pytest.raises(ConfigError, match=r"dataset\.max_pixels=0: must be at least 1 pixel"):
        build(root, max_pixels=0)


@pytest.mark.slow
def test_the_limit_on_pixels_names_its_key(fishr_exp: Command, root) -> None:
    (root / "art" / "cat" / "large.png").write_bytes(png(2000, 1000))
    words = ("dataset=image_folder", f"dataset.root={root}", "model=mlp", "dataset.image_size=8",
             "test_domains=[photo]", "batch_size=2", "trainer=erm")  # fmt: skip
    tight = fishr_exp(*words, "dataset.max_pixels=1999999", "dataset.cache=null")
    assert tight.status == 1
    last = tight.err.splitlines()[-1]
    assert "2000x1000 pixels are more than dataset.max_pixels=1999999" in tight.err, last
    assert "Traceback" not in tight.err
    raised = fishr_exp(*words, "dataset.max_pixels=2000000")
    assert raised.status == 0, raised.err
    assert fishr_exp(*words, "dataset.max_pixels=0").status == 2


def test_the_limit_on_pixels_does_not_rename_runs() -> None:
    from fishr_exp.runs.identity import settings

    old = {"dataset": {"name": "pacs", "root": "x"}}
    new = {"dataset": {**old["dataset"], "max_pixels": 50_000_000,
                       "_neutral_": {"max_pixels": 50_000_000}}}  # fmt: skip
    other = {"dataset": {**new["dataset"], "max_pixels": 10}}
    assert settings(old) == settings(new) != settings(other)


FORMS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("form", FORMS)
def test_mutated_images(form, tmp_path) -> None:
    """60 files with a few wrong bytes: each is read, or told."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path, draw = tmp_path / "image.png", random.Random(form)
    whole = written(form)
    for _ in range(60):
        path.write_bytes(mutated(whole, draw))
        why = fault(str(path))
        if not why:
            assert np.asarray(decode(str(path))).dtype == np.uint8


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the content with some bytes changed, left out or added."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at, kind = draw.randrange(len(changed)), draw.randrange(4)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2 and len(changed) > 50:
            del changed[at : at + draw.randrange(1, 40)]
        else:
            changed[at:at] = draw.randbytes(draw.randrange(1, 9))
    return bytes(changed)


# ----------------------------------------------------------------------------------- folders, lists


def deep(root: Path) -> None:
    here = os.getcwd()
    os.chdir(root / "art" / "cat")
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)


def links(*pairs: tuple[str, str]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name, target in pairs:
            (root / name).symlink_to(target)

    return make


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a class that is the root": (links(("art/all", "..")), "leads to a folder that contains it"),
    "a domain that is the root": (links(("more", ".")), "leads to a folder that contains it"),
    "a domain that is above the root": (links(("up", "../..")), "leads to a folder that contains"),
    "a folder in itself": (links(("art/cat/x", ".")), "leads to a folder that contains it"),
    "two links to one folder, doubled": (
        links(("art/cat/x", "."), ("art/cat/y", ".")), "leads to a folder that contains it"),
    "one class in another": (links(("art/dog/x", "../cat")), "contain the same folder"),
    "one domain in another": (links(("photo/zebra", "../art/cat")), "contain the same folder"),
    "a class that is a link to itself": (links(("art/x", "x")), ""),
    "a link to itself in a class": (links(("art/cat/x", "x")), ""),
    "two links to each other": (links(("art/cat/x", "y"), ("art/cat/y", "x")), ""),
    "a link to nothing": (links(("art/cat/x", "nowhere")), ""),
    "1500 folders deep": (deep, ""),
    "a pipe as a domain": (lambda root: os.mkfifo(root / "pipe"), ""),
    "a pipe as a class": (lambda root: os.mkfifo(root / "art" / "pipe"), ""),
    "a name that controls the terminal": (
        lambda root: (root / "art" / "\x1b[2J").mkdir(), "only art has \\x1b[2J"),
    "a name of two lines": (lambda root: (root / "art" / "a\nb").mkdir(), "only art has a"),
    "a name that looks like an option": (
        lambda root: (root / "art" / "--help").mkdir(), "only art has --help"),
    "a name that is an interpolation": (
        lambda root: (root / "art" / "${oc.env:HOME}").mkdir(), "only art has ${oc.env:HOME}"),
}  # fmt: skip


@pytest.mark.parametrize(
    "attack",
    [pytest.param(a, marks=pytest.mark.slow if a.startswith("1500") else ()) for a in FOLDERS],
)
def test_a_hostile_folder(attack, root) -> None:
    """It is refused in one line, or the images are those that there are."""
    make, said = FOLDERS[attack]
    make(root)
    told, images = told_by(lambda: find_images(root=str(root)))
    subprocess.run(["rm", "-rf", root], check=True)  # pytest itself cannot remove deep folders
    if said:
        assert said in told
    else:
        assert told == ""
        assert [len(images[domain][kind]) for domain in images for kind in ("cat", "dog")] == [
            2
        ] * 4


ROOTS: dict[str, tuple[str, str]] = {
    "nothing": ("", "must name a folder"),
    "blanks": ("  ", "must name a folder"),
    "the home of nobody": ("~no-such-user/x", "does not exist"),
    "a file": ("{0}/art/cat/0.png", "is not a folder"),
    "a device": ("/dev/null", "is not a folder"),
    "below a file": ("{0}/art/cat/0.png/x", "does not exist"),
    "a NUL": ("a\0b", "does not exist"),
    "2500 characters": ("x" * 2500, "does not exist"),
    "an interpolation": ("${oc.env:HOME}/none", "does not exist"),
    "a class": ("{0}/art/cat", "contains no images at domain/class/image"),
    "a domain": ("{0}/art", "contains no images at domain/class/image"),
}


@pytest.mark.parametrize("attack", ROOTS)
@pytest.mark.parametrize("dataset", ["image_folder", "spawrious", "path_lists"])
def test_a_hostile_root(dataset, attack, root) -> None:
    given, said = ROOTS[attack]
    where = given.replace("{0}", str(root))
    find: dict[str, Callable[[], Any]] = {
        "image_folder": lambda: find_images(root=where),
        "spawrious": lambda: find_spawrious(root=where, variant="o2o_easy"),
        "path_lists": lambda: images_in_lists(root=where, lists={"a": "a.txt", "b": "b.txt"}),
    }
    told, _ = told_by(find[dataset])
    assert told
    assert said in told or dataset != "image_folder"


GOOD_LINES = "art/cat/0.png 0\nart/dog/0.png 1\n"
LISTS: dict[str, tuple[bytes, str]] = {
    "a superscript as label": ("art/cat/1.png ²".encode(), "a path and a whole number"),
    "another alphabet's digit": ("art/cat/1.png ٣".encode(), "a path and a whole number"),
    "two signs": (b"art/cat/1.png --5", "a path and a whole number"),
    "a plus": (b"art/cat/1.png +5", "a path and a whole number"),
    "an exponent": (b"art/cat/1.png 1e3", "a path and a whole number"),
    "a fraction": (b"art/cat/1.png 1.0", "a path and a whole number"),
    "a label of 5000 digits": (b"art/cat/1.png " + b"9" * 5000, "a path and a whole number"),
    "a label and no path": (b"5", "a path and a whole number"),
    "no label": (b"art/cat/1.png", "a path and a whole number"),
    "binary": (random.Random(2).randbytes(3000), "a path and a whole number"),
    "UTF-16": ("art/cat/1.png 0".encode("utf-16"), "a path and a whole number"),
    "a line of 300 kB of blanks": (b"a" + b" " * 300_000 + b"b", "a path and a whole number"),
    "a line that controls the terminal": (b"\x1b[2J\x07", "a path and a whole number"),
    "JSON": (b'[["art/cat/1.png", 0]]', "a path and a whole number"),
    "a path of 200 kB": (b"a" * 200_000 + b" 1", ""),
    "a NUL": (b"art/cat/1\0.png 1", "does not exist"),
    "a folder": (b"art/cat 1", "does not exist"),
    "a path upward": (b"../../none.png 1", "does not exist"),
    "a device": (b"/dev/zero 1", "does not exist"),
    "an image twice": (b"art/cat/0.png 0", "listed twice"),
    "an image twice, spelled otherwise": (b"./art/../art/cat/0.png 0", "listed twice"),
    "two labels": (b"art/cat/0.png 1", "two labels"),
    "a domain's image": (b"photo/cat/0.png 0", "listed for domain"),
}


def examined(root: Path, lists: dict[str, str]) -> list[Found]:
    """What `fishr-data check` finds in lists: nothing of lists that are refused."""
    told, images = told_by(lambda: images_in_lists(root=str(root), lists=lists))
    return [] if told else examine(images)


@pytest.mark.parametrize("attack", LISTS)
def test_a_hostile_list(attack, root) -> None:
    line, said = LISTS[attack]
    (root / "a.txt").write_bytes(GOOD_LINES.encode() + line)
    (root / "b.txt").write_text(GOOD_LINES.replace("art", "photo"))
    lists = {"art": "a.txt", "photo": "b.txt"}
    with pytest.raises(ConfigError) as caught:
        path_lists(root=str(root), lists=lists, name="x", image_size=8, augment=False)
    text = " ".join(str(caught.value).split())
    assert said in text
    assert text.isprintable()
    assert len(text) < 3000 or attack == "a path of 200 kB"
    bad = [one for one in examined(root, lists) if one.fault]
    assert all(one.fault.isprintable() for one in bad)


@pytest.mark.parametrize("label", [-3, 5, 30_000_000, 99_999_999_999_999_999])
def test_labels_with_gaps_are_read(label, root) -> None:
    (root / "a.txt").write_text(f"{GOOD_LINES}art/cat/1.png {label}")
    (root / "b.txt").write_text(f"{GOOD_LINES}art/cat/1.png {label}".replace("art", "photo"))
    lists = {"art": "a.txt", "photo": "b.txt"}
    domains = path_lists(root=str(root), lists=lists, name="x", image_size=8, augment=False)
    assert domains.num_classes == 3


def test_a_dataset_whose_aliases_expand_without_end(root, tmp_path, capsys) -> None:
    """A YAML of 500 bytes that stands for 10^9 values, in a folder of options."""
    lines = ["# @package dataset", "defaults: [image_folder]", "a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "bomb.yaml").write_text("\n".join(lines))
    words = ["check", "bomb", str(root), "--config-dir", str(tmp_path / "conf")]
    assert data_cli.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "its aliases stand for more than" in err


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a socket", "a device",
                                  "a link to nothing", "a link to itself"])  # fmt: skip
def test_a_list_that_is_no_file(kind, root) -> None:
    place(kind, root / "a.txt")
    (root / "b.txt").write_text(GOOD_LINES)
    lists = {"art": "a.txt", "photo": "b.txt"}
    told, _ = told_by(lambda: images_in_lists(root=str(root), lists=lists))
    assert told.startswith("dataset.lists=")


# ------------------------------------------------------------------------------------------- caches


def with_sizes(*sizes: int) -> Callable[[bytes], bytes]:
    """Replace the first image's height, width, original height and original width."""
    return lambda old: old[: _HEAD.size] + struct.pack("<4i", *sizes) + old[_HEAD.size + 16 :]


def with_count(count: int) -> Callable[[bytes], bytes]:
    return lambda old: old[:8] + struct.pack("<Q", count) + old[16:]


CACHES: dict[str, Callable[[bytes], bytes]] = {
    "negative sizes": with_sizes(-16, -12, 16, 12),
    "a negative height": with_sizes(-16, 12, 16, 12),
    "a negative width": with_sizes(16, -12, 16, 12),
    "no width": with_sizes(16, 0, 16, 12),
    "the largest sizes": with_sizes(2**31 - 1, 2**31 - 1, 16, 12),
    "sizes whose product overflows": with_sizes(-(2**31), -(2**31), 16, 12),
    "negative original sizes": with_sizes(16, 12, -16, -12),
    "no original sizes": with_sizes(16, 12, 0, 0),
    "an unreadable image of some size": with_sizes(0, 12, 16, 12),
    "other sizes": with_sizes(16, 13, 16, 12),
    "no images": with_count(0),
    "one image more": with_count(5),
    "2^40 images": with_count(2**40),
    "2^63 images": with_count(2**63),
    "2^64-1 images": with_count(2**64 - 1),
    "nothing": lambda _: b"",
    "one byte": lambda _: b"f",
    "half a header": lambda old: old[:40],
    "no pixels": lambda old: old[: _HEAD.size + 64],
    "one byte less": lambda old: old[:-1],
    "one byte more": lambda old: old + b"x",
    "another version": lambda old: b"fishr-9\n" + old[8:],
    "other sources": lambda old: old[:16] + bytes(32) + old[48:],
    "zeros": lambda old: bytes(len(old)),
    "random bytes": lambda old: random.Random(3).randbytes(len(old)),
    "text": lambda _: b"hello\n" * 100,
}


@pytest.mark.parametrize("attack", CACHES)
def test_a_spoilt_cache_is_made_again(attack, root) -> None:
    cache = root.parent / "cache"
    plain = build(root).by_name["art"].read(torch.arange(4))
    build(root, cache=str(cache))
    (path,) = cache.glob("*art*.pixels")
    whole = path.read_bytes()
    path.write_bytes(CACHES[attack](whole))
    again = build(root, cache=str(cache)).by_name["art"].read(torch.arange(4))
    assert torch.equal(again.x, plain.x)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("suffix", ["", ".lock", ".part"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a link to itself"])
def test_something_else_lies_in_a_place_of_the_cache(kind, suffix, root) -> None:
    cache = root.parent / "cache"
    build(root, cache=str(cache))
    (path,) = cache.glob("*art*.pixels")
    path.unlink()
    other = path.with_name(f"{path.name}{suffix}")
    other.unlink(missing_ok=True)
    place(kind, other)
    told, domains = told_by(lambda: build(root, cache=str(cache)))
    assert told.startswith(f"dataset.cache={cache}: ") if told else len(domains.by_name["art"]) == 4


# ------------------------------------------------------------------------------------------ weights


def small() -> Model:
    body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten())
    featurizer = backbone.Featurizer(body, 2, freeze_bn=False, dropout=0.0)
    return Model(featurizer, nn.Linear(2, 2))


def load(path: Path) -> None:
    """Read and load weights as `model=torchvision model.weights_file=FILE` does."""
    backbone._load(small(), read_state(str(path)), "fc", str(path))


def saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def pickled(code: bytes) -> bytes:
    """A file of torch.save whose pickle is this code."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return stream.getvalue()


def compressed(content: bytes) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return stream.getvalue()


class Runs:
    """A pickle of it would make a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Shadowed(OrderedDict):  # type: ignore[type-arg]
    """Its pickle is that of an `OrderedDict` whose method is a number."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"get": 5, "items": 5}


class Named(dict):  # type: ignore[type-arg]
    pass


MARK = "/tmp/fishr-exp-attack"
STATE = small().state_dict()
BODY = {name.removeprefix("featurizer.body."): value for name, value in STATE.items()
        if name.startswith("featurizer")}  # fmt: skip
LOOP: dict[str, Any] = {}
LOOP["model"] = LOOP
WEIGHTS: dict[str, bytes] = {
    "an empty file": b"",
    "one byte": b"\x80",
    "text": b"hello",
    "a web page": b"<html>not found</html>",
    "random bytes": random.Random(4).randbytes(4000),
    "zeros": bytes(4000),
    "a PNG": written("PNG"),
    "a zip of something else": compressed(saved({}))[:0] + pickled(b"")[:60],
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "no pickle": pickled(b""),
    "open brackets": b"(" * 20_000,
    "open brackets in a zip": pickled(b"\x80\x02" + b"(" * 20_000),
    "open lists": pickled(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
    "nested tuples": pickled(b"\x80\x02)" + b"\x85" * 20_000 + b"."),
    "nested tuples as a key": pickled(b"\x80\x02})" + b"\x85" * 20_000 + b"K\x01s."),
    "only STOP": pickled(b"\x80\x02."),
    "a wrong memo": pickled(b"\x80\x02h\x63."),
    "an unknown operation": pickled(b"\x80\x02\xff."),
    "another protocol": pickled(pickle.dumps({"a": 1}, protocol=5)),
    "a storage of nothing": pickled(b"\x80\x02)Q."),
    "a storage that is absent": pickled(
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x009X\x03\0\0\0cpuK\x04tQ."),
    "a device that is absent": pickled(
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x06\0\0\0cuda:9K\x04tQ."),
    "a name of two lines": saved({**BODY, "a\nb": torch.ones(1)}),
    "a name that controls the terminal": saved({**BODY, "\x1b[2J\x07": torch.ones(1)}),
    "a name that is not UTF-8": saved({**BODY, "\ud800": torch.ones(1)}),
    "a name of 100 kB": saved({**BODY, "a" * 100_000: torch.ones(1)}),
    "1,000 names": saved({f"x{i}": torch.ones(1) for i in range(1000)}),
    "os.system": pickled(pickle.dumps(Runs(os.system, f"touch {MARK}"), protocol=2)),
    "eval": pickled(pickle.dumps(Runs(eval, f"open('{MARK}', 'w')"), protocol=2)),
    "exec": pickled(pickle.dumps(Runs(exec, f"open('{MARK}', 'w')"), protocol=2)),
    "open": pickled(pickle.dumps(Runs(open, MARK, "w"), protocol=2)),
    "a plain pickle of os.system": pickle.dumps(Runs(os.system, f"touch {MARK}")),
    "a plain pickle": pickle.dumps({"a": 1}),
    "a whole module": saved(nn.Linear(2, 2)),
    "a number": saved(5),
    "nothing": saved(None),
    "a list": saved([torch.ones(2)]),
    "a tensor": saved(torch.ones(2)),
    "an empty dict": saved({}),
    "numbers as names": saved({1: torch.ones(2)}),
    "numbers as tensors": saved({"0.weight": 5}),
    "a dict in itself": saved(LOOP),
    "methods that are numbers": saved(Shadowed()),
    "a class of its own": saved(Named(BODY)),
    "other names": saved({"layer.weight": torch.ones(3)}),
    "a name is missing": saved({k: v for k, v in BODY.items() if k != "0.bias"}),
    "another shape": saved({**BODY, "0.weight": torch.ones(3, 3)}),
    "no shape": saved({**BODY, "0.weight": torch.tensor(1.0)}),
    "no elements": saved({**BODY, "0.weight": torch.ones(0, 2, 1, 1)}),
    "10^12 elements of one number": saved(
        {**BODY, "0.weight": torch.ones(1, 1, 1, 1).expand(10**12, 3, 1, 1)}),
    "a sparse tensor": saved({**BODY, "0.weight": torch.ones(2, 2, 1, 1).to_sparse()}),
    "a tensor without data": saved({**BODY, "0.weight": torch.ones(2, 2, 1, 1, device="meta")}),
    "a tensor of a class of its own": saved({**BODY, "0.weight": nn.Buffer(torch.ones(3))}),
    "cut in the middle": saved(BODY)[: len(saved(BODY)) // 2],
    "cut at the end": saved(BODY)[:-30],
    "the old format, cut": saved(BODY, _use_new_zipfile_serialization=False)[:-9],
    "100 MB in 100 kB": compressed(saved({**BODY, "x": torch.zeros(25_000_000)})),
}  # fmt: skip


@pytest.mark.parametrize("attack", WEIGHTS)
def test_hostile_weights(attack, tmp_path, recwarn) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(WEIGHTS[attack])
    with pytest.raises(ConfigError) as caught:
        load(path)
    text = " ".join(str(caught.value).split())
    assert text.startswith(f"model.weights_file={path}: ")
    assert text.isprintable()
    assert len(text) < 1000
    assert not recwarn.list
    assert not Path(MARK).exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a socket", "a device", "a terminal",
                                  "a link to nothing", "a link to itself"])  # fmt: skip
def test_weights_that_are_no_file(kind, suffix, tmp_path) -> None:
    path = tmp_path / f"weights{suffix}"
    place(kind, path)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(path)
    assert one_line(caught.value).endswith("check the path")


@pytest.mark.parametrize("given", ["", " ", "~no-such-user/x.pt", "a\0b", "x" * 5000, "/dev/null/x",
                                   "http://host/x.pt"])  # fmt: skip
def test_a_path_of_weights_that_cannot_be(given) -> None:
    with pytest.raises(ConfigError):
        load(given)  # type: ignore[arg-type]


ODD_WEIGHTS: dict[str, bytes] = {
    "16 bits": saved({k: v.half() if v.is_floating_point() else v for k, v in BODY.items()}),
    "64 bits": saved({k: v.double() if v.is_floating_point() else v for k, v in BODY.items()}),
    "three wrappers": saved({"state_dict": {"model": {f"module.{k}": v for k, v in BODY.items()}}}),
    "parameters": saved({k: nn.Parameter(v, requires_grad=False) for k, v in BODY.items()}),
    "the old format": saved(BODY, _use_new_zipfile_serialization=False),
    "compressed": compressed(saved(BODY)),
    "the last layer of a stranger": saved({**BODY, "fc.weight": torch.ones(7, 9)}),
    "a model of ours": saved(STATE),
    "bytes after its end": saved(BODY, _use_new_zipfile_serialization=False) + bytes(99),
}  # fmt: skip


@pytest.mark.parametrize("attack", ODD_WEIGHTS)
def test_odd_weights_that_are_read(attack, tmp_path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(ODD_WEIGHTS[attack])
    load(path)


@pytest.mark.parametrize("kind", ["zip", "old", "wrapped", "ours"])
def test_mutated_weights(kind, tmp_path, recwarn) -> None:
    """100 files with a few wrong bytes: each is loaded, or told in one line."""
    whole = {
        "zip": saved(BODY),
        "old": saved(BODY, _use_new_zipfile_serialization=False),
        "wrapped": saved({"state_dict": BODY, "epoch": 3}),
        "ours": saved({"model": STATE}),
    }[kind]
    path, draw = tmp_path / "weights.pt", random.Random(kind)
    told = 0
    for _ in range(100):
        path.write_bytes(mutated(whole, draw))
        told += told_by(lambda: load(path))[0] != ""
    assert told > 50


@pytest.mark.parametrize("name", ["AssertionError", "IndexError", "error"])
def test_the_weights_that_fell_short_before(name) -> None:
    path = HOSTILE / f"weights-{name}.pt"
    if not path.exists():
        pytest.skip("../shared is absent")
    with pytest.raises(ConfigError, match="not a file of tensors, or is damaged"):
        load(path)


@pytest.mark.slow
def test_hostile_weights_on_the_command_line(fishr_exp: Command, tmp_path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"(" * 1000)
    words = ("model=torchvision", "model.name=mobilenet_v3_small", "dataset=colored_digits",
             "test_domains=[minus90]", f"model.weights_file={tmp_path}/weights.pt")  # fmt: skip
    outcome = fishr_exp(*words, tiny=("tracker=none",))
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert "is not a file of tensors, or is damaged (" in outcome.err
