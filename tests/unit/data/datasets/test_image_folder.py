"""Images on disk, a folder a domain."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fishr_exp.core.errors import ConfigError, TrainingError
from fishr_exp.data.datasets.image_folder import image_folder
from fishr_exp.data.minibatches import Minibatches, chunks, loader

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def paint(path, color=(200, 100, 50), size=(10, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


@pytest.fixture
def root(tmp_path):
    """Two domains of two classes, with three images a class."""
    for d, domain in enumerate(("photo", "art")):
        for c, kind in enumerate(("dog", "cat")):
            for i in range(3):
                paint(tmp_path / domain / kind / f"{i}.png", (80 * d, 80 * c, 80 * i))
    return tmp_path


def build(root, **changes):
    arguments = {"root": str(root), "name": "some", "image_size": 6, "augment": True}
    return image_folder(**{**arguments, **changes})


def whole(domain):
    return domain.read(torch.arange(len(domain)))


def pixels(x):
    """Undo the normalization: 0..255."""
    return (x * STD + MEAN).mul(255).round().int()


def test_domains_classes_and_files_are_in_the_order_of_their_names(root):
    domains = build(root)
    assert domains.name == "some"
    assert list(domains.by_name) == ["art", "photo"]
    assert domains.num_classes == 2
    assert domains.input_shape == (3, 6, 6)
    x, y = whole(domains.by_name["photo"])
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [[0, 80 * c, 80 * i] for c in (1, 0) for i in range(3)]  # cat, then dog
    assert pixels(x)[:, :, 3, 3].tolist() == expected


def test_images_are_read_in_the_order_asked_for(root):
    domain = build(root).by_name["photo"]
    x, y = whole(domain)
    some = domain.read(torch.tensor([5, 0, 0]))
    assert torch.equal(some.x, x[[5, 0, 0]])
    assert torch.equal(some.y, y[[5, 0, 0]])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(root, mode):
    paint(root / "art" / "cat" / "0.tif", (255, 255, 255), mode=mode)
    x, _ = build(root).by_name["art"].read(torch.tensor([1]))  # behind 0.png
    assert (pixels(x) == 255).all()


def test_images_are_turned_as_their_exif_says(root):
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: the top half is white
    image.save(root / "art" / "cat" / "0.png", exif=exif)
    x, _ = build(root).by_name["art"].read(torch.tensor([0]))
    assert (pixels(x)[0, :, 0] == 255).all()
    assert (pixels(x)[0, :, 5] == 0).all()


def test_what_is_no_image_is_passed_over_and_counted(root, caplog):
    (root / "art" / "cat" / "text.txt").write_text("a note")
    (root / "art" / "cat" / "._0.png").write_text("a shadow")
    (root / "art" / "cat" / ".cache").mkdir()
    paint(root / "art" / "cat" / ".cache" / "0.png")
    (root / ".hidden" / "cat").mkdir(parents=True)
    (root / "README.md").write_text("a note")
    paint(root / "art" / "cat" / "deeper" / "3.JPG")
    with caplog.at_level(logging.INFO):
        domains = build(root)
    assert list(domains.by_name) == ["art", "photo"]
    assert len(domains.by_name["art"]) == 7
    assert "ignored 2 files" in caplog.text


def test_a_class_may_be_empty_in_a_domain(root):
    for path in (root / "art" / "cat").iterdir():
        path.unlink()
    assert whole(build(root).by_name["art"]).y.tolist() == [1, 1, 1]


@pytest.fixture
def textured(root):
    """Images on which every augmentation shows."""
    noise = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        Image.fromarray(noise.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return root


def test_augmentation_is_a_function_of_its_stream_alone(textured):
    domain = build(textured).by_name["art"]
    indices = torch.tensor([0, 0, 0, 1])
    one = domain.read(indices, torch.Generator().manual_seed(1)).x
    torch.rand(7)
    two = domain.read(indices, torch.Generator().manual_seed(1)).x
    other = domain.read(indices, torch.Generator().manual_seed(2)).x
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # each sample has draws of its own
    assert not torch.equal(one[1], one[2])


def test_augmentation_leaves_the_global_stream_alone(textured):
    before = torch.get_rng_state()
    build(textured).by_name["art"].read(torch.arange(6), torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())


def test_about_one_in_ten_is_gray(textured):
    domain = build(textured).by_name["art"]
    x, _ = domain.read(torch.zeros(400, dtype=torch.int64), torch.Generator().manual_seed(1))
    levels = pixels(x)
    gray = (levels == levels[:, :1]).all(3).all(2).all(1)
    assert 0.04 < gray.float().mean() < 0.16


def test_evaluation_and_augment_false_leave_images_as_they_are(textured):
    plain = whole(build(textured).by_name["art"]).x
    unaugmented = build(textured, augment=False).by_name["art"]
    assert torch.equal(plain, unaugmented.read(torch.arange(6), torch.Generator().manual_seed(1)).x)
    assert torch.equal(plain, whole(build(textured).by_name["art"]).x)


def test_streams_of_images_are_the_same_for_any_number_of_workers(textured):
    minibatches = Minibatches(build(textured).by_name["art"], torch.arange(6), 2, seed=0)
    here = list(loader(minibatches, 2, 6))
    there = list(loader(minibatches, 2, 6, num_workers=2))
    assert all(torch.equal(a.x, b.x) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("spoil", ["text", "empty", "cut", "gone"])
def test_an_image_that_cannot_be_read_is_named_by_its_path(textured, spoil, num_workers):
    path = textured / "art" / "cat" / "1.png"
    domain = build(textured).by_name["art"]
    content = {"text": b"no image", "empty": b"", "cut": path.read_bytes()[:200], "gone": None}[
        spoil
    ]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        list(chunks(domain, torch.arange(6), 4, num_workers=num_workers))
    assert str(caught.value).startswith(f"{path}: the image cannot be read (")
    assert "\n" not in str(caught.value)


def one_line(root, **changes):
    with pytest.raises(ConfigError) as caught:
        build(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_root_that_is_not_there(tmp_path):
    assert one_line(tmp_path / "no").startswith(f"dataset.root={tmp_path / 'no'}: does not exist")


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert "is not a folder" in one_line(tmp_path / "file")


def test_a_root_without_images(tmp_path):
    assert "contains no images" in one_line(tmp_path)


def test_a_root_that_lies_too_deep(root):
    assert "contains no images at domain/class/image" in one_line(root / "art")


def test_a_root_with_one_domain(root):
    shutil.rmtree(root / "art")
    assert "contains one domain, photo" in one_line(root)


def test_domains_whose_classes_differ(root):
    (root / "photo" / "cat").rename(root / "photo" / "katze")
    line = one_line(root)
    assert "domain photo differ" in line
    assert "only photo has katze" in line
    assert "only art has cat" in line


def test_many_classes_that_differ_are_counted(root):
    for i in range(8):
        paint(root / "photo" / f"class{i}" / "0.png")
    assert "only photo has class0 class1 class2 class3 class4 and 3 more" in one_line(root)


def test_a_domain_without_images(root):
    for kind in ("cat", "dog"):
        (root / "empty" / kind).mkdir(parents=True)
    assert "domain empty contains no images" in one_line(root)


def test_a_folder_that_cannot_be_listed(root, monkeypatch):
    scandir = os.scandir

    def forbid(path="."):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    assert f"{root / 'art' / 'cat'} cannot be listed (Permission denied)" in one_line(root)


def test_a_size_that_cannot_be(root):
    assert one_line(root, image_size=0).startswith("dataset.image_size=0: ")


def test_pacs(shared_data):
    root = shared_data / "pacs_96"
    if not root.is_dir():
        pytest.skip("no real data: ../shared/data/pacs_96 is absent")
    domains = build(root, image_size=96)
    assert list(domains.by_name) == ["art_painting", "cartoon", "photo", "sketch"]
    assert [len(domain) for domain in domains.by_name.values()] == [2048, 2344, 1670, 3929]
    assert domains.num_classes == 7
    sketch = domains.by_name["sketch"]
    x, y = sketch.read(torch.tensor([0, 3928]))
    assert x.shape == (2, 3, 96, 96)
    assert y.tolist() == [0, 6]
    levels = pixels(x)
    assert levels.min() >= 0
    assert levels.max() <= 255


def test_a_stray_text_file_among_real_images(shared_data):
    root = shared_data / "mixed_codec"
    if not root.is_dir():
        pytest.skip("no real data: ../shared/data/mixed_codec is absent")
    assert "the classes of domain sun differ" in one_line(root)


def test_real_domains_whose_class_names_differ(shared_data):
    root = shared_data / "vlcs_mini"
    if not root.is_dir():
        pytest.skip("no real data: ../shared/data/vlcs_mini is absent")
    assert "the classes of domain labelme differ from those of domain caltech" in one_line(root)


# --- domains by name, classes by map, bad images ---------------------------------------------

VLCS_MINI = {
    "bird": ["bird", "flying", "vogel"],
    "car": ["auto", "drive", "vehicle"],
    "chair": ["sit", "sofa", "stuhl"],
    "dog": ["dog", "hund", "husky"],
    "person": ["mensch", "sapiens"],
}


def test_real_domains_by_a_class_map(shared_data):
    root = shared_data / "vlcs_mini"
    if not root.is_dir():
        pytest.skip("no real data: ../shared/data/vlcs_mini is absent")
    domains = build(root, class_map=VLCS_MINI)
    assert domains.num_classes == 5
    counts = {
        name: whole(d).y.bincount(minlength=5).tolist() for name, d in domains.by_name.items()
    }
    assert counts == {
        "caltech": [9, 20, 6, 11, 9],
        "labelme": [50, 14, 7, 6, 0],  # no person there
        "sun": [8, 9, 4, 19, 15],
    }


def test_a_map_that_forgets_a_folder(root):
    line = one_line(root, class_map={"dog": ["dog"]})
    assert line.startswith("dataset.class_map={dog}: has no class for the folders cat of domain")


def test_a_map_that_names_a_folder_twice(root):
    class_map = {"animal": ["cat", "dog"], "pet": ["dog"]}
    with pytest.raises(ConfigError, match=r"lists the folder dog for animal and pet; list it once"):
        image_folder(root=str(root), name="x", image_size=4, augment=False, class_map=class_map)


def test_a_folder_that_is_no_domain(root):
    (root / "splits").mkdir()
    with pytest.raises(ConfigError, match=r"folder splits contains no .*dataset\.domains=\["):
        image_folder(root=str(root), name="x", image_size=4, augment=False)


def test_domains_are_those_named_in_that_order(root):
    paint(root / "notes" / "cat" / "0.png")
    assert list(build(root, domains=["photo", "art"]).by_name) == ["photo", "art"]
    line = one_line(root, domains=["photo", "sketch"])
    assert "has no folder sketch; it has art, notes, photo" in line


def test_bad_images_are_skipped_and_counted(root, caplog):
    (root / "art" / "cat" / "1.png").write_bytes(b"no image")
    (root / "photo" / "dog" / "0.png").write_bytes(b"")
    domains = build(root, on_bad_image="skip")
    assert {name: len(d) for name, d in domains.by_name.items()} == {"art": 5, "photo": 5}
    assert domains.skipped == {"art": 1, "photo": 1}
    assert whole(domains.by_name["art"]).y.tolist() == [0, 0, 1, 1, 1]
    assert f"skipped 2 of 12 images that cannot be read, the first: {root}" in caplog.text
    assert build(root).skipped == {}
    assert one_line(root, on_bad_image="ignore").startswith("dataset.on_bad_image=ignore: choose")


def test_a_domain_of_bad_images_alone(root):
    for path in (root / "art").rglob("*.png"):
        path.write_bytes(b"no image")
    assert "domain art contains no images" in one_line(root, on_bad_image="skip")


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_and_not_cut_off(root, mode):
    levels = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16).repeat(5, 0)
    levels = levels.repeat(5, 1)
    array = levels if mode == "I;16" else levels.astype(np.int32)
    Image.fromarray(array).save(root / "art" / "cat" / "0.tif")
    x, _ = build(root, image_size=10).by_name["art"].read(torch.tensor([1]))  # behind 0.png
    assert (pixels(x)[0, :, [0, 0, 9, 9], [0, 9, 0, 9]] == torch.tensor([0, 100, 200, 255])).all()
