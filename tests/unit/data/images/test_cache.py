"""Decoded images in files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.datasets.image_folder import image_folder
from fishr_exp.data.datasets.path_lists import path_lists
from fishr_exp.data.images import cache
from fishr_exp.data.images.cache import Cached, cached
from fishr_exp.data.images.decoding import Files
from fishr_exp.data.minibatches import Minibatches, chunks, loader


@pytest.fixture
def root(tmp_path):
    """Two domains of two classes, three images a class, of three sizes."""
    noise = np.random.default_rng(0)
    for domain in ("art", "photo"):
        for kind in ("cat", "dog"):
            for i in range(3):
                path = tmp_path / "data" / domain / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise.integers(0, 256, (9 + i, 12 - 2 * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def build(root, **changes):
    arguments = {"root": str(root), "name": "some", "image_size": 6, "augment": True}
    return image_folder(**{**arguments, **changes}).by_name["art"]


def files(root, stored_size=None):
    return Files(sorted(map(str, root.rglob("art/*/*.png"))), stored_size)


def store(root, stored_size=None, folder=None):
    folder = folder or root.parent / "cache"
    return cached(files(root, stored_size), root, "some-art", folder)


def modified(path):
    return path.stat().st_mtime_ns


@pytest.mark.parametrize("stored_size", [None, 6, 9])
def test_a_cache_changes_no_bit_of_what_is_read(root, stored_size):
    plain = build(root, stored_size=stored_size)
    stored = build(root, stored_size=stored_size, cache=str(root.parent / "cache"))
    indices = torch.tensor([4, 0, 0, 5])
    for stream in (None, 1):
        one, two = (
            domain.read(indices, stream and torch.Generator().manual_seed(stream))
            for domain in (plain, stored)
        )
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)


def test_the_pictures_are_those_of_the_files(root):
    for one, two in zip(files(root), store(root), strict=True):
        assert np.array_equal(one.pixels, two.pixels)
        assert one.size == two.size


def test_large_images_alone_are_shrunk_and_evaluation_at_their_size_stays_the_same(root):
    shapes = {picture.pixels.shape[:2] for picture in store(root, 10)}
    assert shapes == {(10, 10), (11, 8)}  # 9×12 is shrunk; 10×10 and 11×8 are not larger
    everything = torch.arange(6)
    assert torch.equal(
        build(root).read(everything).x, build(root, stored_size=6).read(everything).x
    )


def test_a_cache_is_used_again_and_made_anew_when_an_image_changes(root):
    path = store(root).path
    assert path.name.startswith("some-art-original-")
    first = modified(path)
    assert modified(store(root).path) == first
    changed = root / "art" / "dog" / "1.png"
    Image.new("RGB", (5, 4), (1, 2, 3)).save(changed)
    again = store(root)
    assert modified(path) != first
    assert again[4].pixels.tolist() == [[[1, 2, 3]] * 5] * 4
    os.utime(changed, ns=(1, 1))  # the same bytes, perhaps: nobody reads them to know
    assert modified(store(root).path) != first
    changed.unlink()
    assert len(store(root)) == 5


def test_a_link_to_the_images_has_their_cache(root, tmp_path_factory):
    path = store(root).path
    first = modified(path)
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(root)
    there = store(link, folder=path.parent)
    assert (there.path, modified(path)) == (path, first)


def test_sizes_have_files_of_their_own(root):
    assert store(root).path != store(root, 6).path
    assert len(list((root.parent / "cache").glob("*.pixels"))) == 2


@pytest.mark.parametrize("length", [0, 7, 90, -1])
def test_a_cache_that_was_cut_off_is_made_anew(root, length):
    path, sources = store(root).path, store(root)._sources
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError):
        Cached(path, sources)
    store(root)
    assert path.read_bytes() == content


def test_a_changed_pixel_is_found_when_it_is_looked_for(root):
    stored = store(root)
    assert stored.is_intact()
    with stored.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([255 - last]))
    assert not store(root).is_intact()


def test_what_a_killed_builder_left_behind_is_no_cache(root):
    path = store(root).path
    whole = path.read_bytes()
    path.with_name(f"{path.name}.part").write_bytes(whole[:100])
    path.unlink()
    assert store(root).path.read_bytes() == whole
    assert not list(path.parent.glob("*.part"))


def _build_slowly(root, times):
    write = cache._write_all

    def slow(*arguments):
        with times.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        write(*arguments)

    cache._write_all = slow
    return [picture.pixels.tolist() for picture in store(root)]


def test_two_builders_at_once_build_once(root):
    times = root.parent / "times"
    # Processes forked from one of many threads may hang.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        one, two = pool.map(_build_slowly, [root] * 2, [times] * 2)
    assert one == two == [picture.pixels.tolist() for picture in files(root)]
    assert times.read_text() == "built\n"


def test_a_cache_travels_by_its_path(root):
    stored = store(root).selected([3, 1])
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    there = pickle.loads(sent)
    assert [p.pixels.tolist() for p in there] == [p.pixels.tolist() for p in stored]
    stored.path.write_bytes(b"another")
    with pytest.raises(TrainingError, match="the cache was changed during the run"):
        pickle.loads(sent)


def test_workers_read_the_same_minibatches_from_any_place(root):
    minibatches = Minibatches(build(root, cache=str(root.parent / "c")), torch.arange(6), 4, seed=0)
    here = list(loader(minibatches, 0, 6))
    for start, workers in ((0, 1), (3, 2), (4, 0)):
        there = list(loader(minibatches, start, 6, num_workers=workers))
        assert all(torch.equal(a.x, b.x) for a, b in zip(here[start:], there, strict=True))


def test_bad_images_end_the_building_or_are_left_out(root):
    bad = root / "art" / "cat" / "1.png"
    bad.write_bytes(b"no image")
    where = str(root.parent / "cache")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(
            ConfigError, match=r"1 image cannot be read, the first: .*cat/1\.png \("
        ):
            build(root, cache=where)
        arguments = {"root": str(root), "name": "some", "image_size": 6, "augment": False}
        domains = image_folder(**arguments, cache=where, on_bad_image="skip")
        plain = image_folder(**arguments, on_bad_image="skip")
        assert domains.skipped == plain.skipped == {"art": 1}
        one, two = (d.by_name["art"].read(torch.arange(5)) for d in (domains, plain))
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)


def test_lists_have_a_cache_too(root):
    for domain in ("art", "photo"):
        lines = [
            f"{domain}/{kind}/{i}.png {kind == 'cat':d}" for kind in ("cat", "dog") for i in (2, 0)
        ]
        (root / f"{domain}.txt").write_text("\n".join(lines))
    arguments = {
        "root": str(root), "lists": {d: [f"{d}.txt"] for d in ("art", "photo")}, "name": "some",
        "image_size": 6, "augment": True,
    }  # fmt: skip
    plain, stored = (
        path_lists(**arguments, cache=where).by_name["photo"].read(torch.arange(4))
        for where in (None, str(root.parent / "cache"))
    )
    assert torch.equal(plain.x, stored.x)
    (root / "art" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"dataset\.on_bad_image=skip"):
        path_lists(**arguments, cache=str(root.parent / "cache"))


def test_a_full_disk_leaves_one_line_and_nothing_behind(root, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError) as caught:
        store(root)
    assert str(caught.value).startswith("dataset.cache=")
    assert "cannot be written (No space left on device)" in str(caught.value)
    assert "stored_size" in str(caught.value)
    left = {path.suffix for path in (root.parent / "cache").iterdir()}
    assert left <= {".lock"}


def test_a_folder_that_cannot_be_made(root):
    (root.parent / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"dataset\.cache="):
        store(root)


def test_a_stored_size_that_cannot_be(root):
    with pytest.raises(ConfigError, match=r"dataset\.stored_size=0: "):
        build(root, stored_size=0)


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_what_a_device_finishes_is_what_is_read(root, num_workers, pin_memory):
    domain = build(root, cache=str(root.parent / "c"))
    stream, everything = Minibatches(domain, torch.arange(6), 4, seed=0), torch.arange(6)
    sent = [
        *loader(stream, 0, 3, num_workers=num_workers, pin_memory=pin_memory),
        *chunks(domain, everything, 4, num_workers=num_workers, pin_memory=pin_memory),
    ]
    read = [*(stream[k] for k in range(3)), *map(domain.read, everything.split(4))]
    for pixels, minibatch in zip(sent, read, strict=True):
        assert (pixels.x.dtype == torch.uint8) == pin_memory
        assert torch.equal(pixels.to(torch.device("cpu")).x, minibatch.x)
        assert torch.equal(pixels.y, minibatch.y)
