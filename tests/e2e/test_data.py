"""`fishr-data`, and runs on datasets of images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fishr_exp.cli import data as data_cli
from fishr_exp.training import changes

from .conftest import Command, stop_before


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], images: Path):
    def call(*words: str, dataset: str = "image_folder", root: Path = images):
        status = data_cli.main(["check", dataset, str(root), *words])
        return status, *capsys.readouterr()

    return call


def test_sound_images(check, images: Path) -> None:
    status, out, _ = check()
    assert status == 0
    rows = [line.split() for line in out.splitlines()[2:6]]
    odd = "12"  # sides of 16 pixels
    assert rows[:3] == [
        [name, "12", "2", "cat", "(6)", "0", "0", odd, "0"]
        for name in ("cartoon", "photo", "sketch")
    ]
    assert rows[3] == ["all", "36", "0", "0", "36", "0"]
    assert f"{images}/cartoon/cat/0.png: 16x16 pixels" in out


def test_each_fault_is_named(check, images: Path) -> None:
    cat = images / "photo" / "cat"
    (cat / "0.png").write_bytes(b"")
    (cat / "1.png").write_bytes((cat / "1.png").read_bytes()[:80])
    (cat / "2.png").write_text("a note")
    shutil.copy(cat / "3.png", images / "sketch" / "dog" / "9.png")
    shutil.copy(cat / "4.png", cat / "9.png")
    status, out, _ = check()
    assert status == 1
    (row,) = [line.split() for line in out.splitlines() if line.startswith("photo")]
    assert row[:5] == ["photo", "13", "2", "dog", "(6)"]
    assert row[5:7] == ["3", "1"]
    assert f"{cat}/0.png: cannot be read (the file is empty)" in out
    assert f"{cat}/1.png: cannot be read (" in out
    assert f"{cat}/2.png: cannot be read (cannot identify image file" in out
    assert f"two domains share an image: {cat}/3.png, {images}/sketch/dog/9.png" in out


def test_images_of_one_color_are_named(check, images: Path) -> None:
    path = images / "photo" / "cat" / "0.png"
    Image.new("RGB", (40, 40), (0, 0, 0)).save(path)
    status, out, _ = check()
    assert status == 0
    assert [line.split()[-1] for line in out.splitlines()[2:6]] == ["0", "1", "0", "1"]
    assert f"{path}: all pixels have the color (0, 0, 0) (red, green, blue)" in out


@pytest.fixture
def lists(images: Path) -> Path:
    """A list of each domain, beside the images."""
    for domain in ("photo", "sketch", "cartoon"):
        named = [(c, i) for c in (0, 1) for i in range(6)]
        lines = [f"{domain}/{('cat', 'dog')[c]}/{i}.png {c}" for c, i in named]
        (images / f"{domain}.txt").write_text("\n".join(lines))
    return images


def test_lists_are_checked(check, lists: Path) -> None:
    given = "dataset.lists={photo:photo.txt,sketch:[sketch.txt]}"
    status, out, _ = check(given, dataset="path_lists")
    assert status == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith("sketch")]
    assert row == ["sketch", "12", "2", "0", "(6)", "0", "0", "12", "0"]
    (lists / "photo" / "cat" / "3.png").unlink()
    status, out, _ = check(given, dataset="path_lists")
    assert status == 1
    assert f"{lists}/photo/cat/3.png: cannot be read (No such file or directory)" in out
    status, out, err = check("dataset.lists={a:photo.txt,b:photo.txt}", dataset="path_lists")
    assert (status, out) == (2, "")
    assert "12 images are listed for domain a and for domain b" in err


def test_names_that_are_not_utf8_are_escaped(check, images: Path, monkeypatch) -> None:
    cat = os.fsencode(images / "photo" / "cat")
    os.rename(cat + b"/0.png", cat + b"/\xe9.png")
    (images / "photo" / "cat" / os.fsdecode(b"\xe8.png")).write_text("no image")
    status, out, _ = check()
    assert status == 1
    assert f"{images}/photo/cat/\\xe8.png: cannot be read (" in out
    out.encode()


def test_counts_are_compared_with_the_known_ones(check, images: Path) -> None:
    status, out, _ = check("dataset.domains=[photo,sketch]", dataset="pacs")
    assert status == 1
    assert "PACS has 7 classes, but 2 were found" in out
    assert "PACS has 9991 images, but 24 were found" in out


def test_pacs_is_sound(check, shared_data: Path) -> None:
    if not (shared_data / "pacs_96").is_dir():
        pytest.skip("no real data: ../shared/data/pacs_96 is absent")
    status, out, _ = check(dataset="pacs", root=shared_data / "pacs_96")
    assert (status, out.split()[-5:]) == (0, ["9991", "0", "0", "0", "0"])


def test_a_codec_that_is_not_in_the_name(check, shared_data: Path) -> None:
    if not (shared_data / "mixed_codec").is_dir():
        pytest.skip("no real data: ../shared/data/mixed_codec is absent")
    words = "dataset.class_map={bird:[vogel],car:[auto,vehicle],chair:[sofa]}"
    status, out, _ = check(words, root=shared_data / "mixed_codec")
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["6", "4", "10"]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("pac", "dataset=pac: no such option; choose from"),
        ("colored_digits", "dataset=colored_digits: is not a dataset of image files"),
        ("vlcs", "has no folder Caltech101, LabelMe, SUN09, VOC2007; it has cartoon, photo"),
    ],
)
def test_a_mistake_is_one_line(check, dataset: str, said: str) -> None:
    status, out, err = check(dataset=dataset)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("fishr-data: ")
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("check", "image_folder", "dataset.clas_map={a:[b]}"),
            "known are root, name, ",
        ),
        (("check", "image_folder", "dataset.clas_map={a:[b]}"), "did you mean dataset.class_map?"),
        (("check", "path_lists"), "dataset.lists=???: must be given; add dataset.lists=VALUE"),
        (("prepare", "path_lists"), "dataset.lists=???: must be given; add dataset.lists=VALUE"),
    ],
)
def test_a_mistake_is_about_this_dataset(capsys, images: Path, words, said: str) -> None:
    command, dataset, *overrides = words
    assert data_cli.main([command, dataset, str(images), *overrides]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_folder_with_quotes_in_its_name(check, images: Path) -> None:
    odd = images.rename(images.with_name("my \"best\" 'images'"))
    assert check(root=odd)[0] == 0


def test_overrides_are_not_asked_for(capsys) -> None:
    with pytest.raises(SystemExit):
        data_cli.main(["check", "pacs"])
    err = capsys.readouterr().err
    assert "the following arguments are required: root;" in err
    with pytest.raises(SystemExit):
        data_cli.main(["check"])
    assert "are required: dataset, root;" in capsys.readouterr().err


def test_files_that_are_passed_over_are_told(check, images: Path, caplog) -> None:
    (images / "photo" / "cat" / "notes.txt").touch()
    assert check()[0] == 0
    assert "ignored 1 file that" in caplog.text


def test_the_list_names_every_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["list"]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("pacs ")]
    assert row.split()[1:5] == ["7", "9991", "manual", "PACS:"]
    assert "colored_digits" in out
    (row,) = [line for line in out.splitlines() if line.startswith("terra_incognita ")]
    assert row.split()[3] == "untested"
    assert "the public links are untested" in out


TINY_IMAGES = ("dataset=image_folder", "dataset.image_size=8", "test_domains=[sketch]",
               "batch_size=4", "model=resnet18", "model.freeze_bn=false", "epochs=1",
               "steps_per_epoch=1", "tracker=none")  # fmt: skip


def test_skipped_images_are_in_the_result(fishr_exp: Command, images: Path) -> None:
    (images / "photo" / "cat" / "0.png").write_bytes(b"no image")
    words = (f"dataset.root={images}", "dataset.on_bad_image=skip")
    outcome = fishr_exp(*words, tiny=TINY_IMAGES)
    assert outcome.status == 0, outcome.err
    assert outcome.result()["skipped"] == {"photo": 1}
    counts = outcome.result()["counts"]
    assert {name: sum(parts.values()) for name, parts in counts.items()} == {
        "cartoon": 12, "photo": 11, "sketch": 12,
    }  # fmt: skip
    assert "skipped 1 of 36 images that cannot be read" in outcome.err


def test_a_class_map_from_the_command_line(fishr_exp: Command, images: Path) -> None:
    (images / "sketch" / "cat").rename(images / "sketch" / "katze")
    root = f"dataset.root={images}"
    assert fishr_exp(root, tiny=TINY_IMAGES).status == 2
    outcome = fishr_exp(root, "dataset.class_map={cat:[cat,katze],dog:[dog]}", tiny=TINY_IMAGES)
    assert outcome.status == 0, outcome.err
    assert outcome.result()["counts"]["sketch"] == {"train": 10, "validation": 2}


def test_an_image_as_large_as_they_come(images: Path, check) -> None:
    wide = np.zeros((40, 400, 3), dtype=np.uint8)
    Image.fromarray(wide).save(images / "photo" / "cat" / "wide.png")
    status, out, _ = check()
    assert status == 0
    assert [line.split()[-2] for line in out.splitlines()[2:6]] == ["12", "13", "12", "37"]


def prepare(capsys, *words: object) -> tuple[int, str, str]:
    status = data_cli.main(["prepare", "image_folder", *map(str, words)])
    return status, *capsys.readouterr()


def test_a_cache_is_prepared_and_mended(capsys, images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    words = (images, f'dataset.cache="{cache}"')
    status, out, err = prepare(capsys, *words)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[2:5]]
    assert [row[:3] for row in rows] == [[n, "12", "0"] for n in ("cartoon", "photo", "sketch")]
    assert out.splitlines()[-1] == f"train with dataset.cache={cache}"
    (photo,) = cache.glob("*photo*.pixels")
    content = photo.read_bytes()
    photo.write_bytes(content[:-1] + bytes([255 - content[-1]]))
    status, again, err = prepare(capsys, *words)
    assert (status, again) == (0, out)
    assert "damaged" in err
    assert photo.read_bytes() == content


def test_nothing_is_prepared_without_a_folder(capsys, images: Path) -> None:
    status, out, err = prepare(capsys, images, "dataset.cache=null")
    assert (status, out) == (2, "")
    assert "dataset.cache=null: does not name a folder" in err


def test_a_run_with_a_cache_is_the_run_without(fishr_exp: Command, images: Path) -> None:
    root, cache = f"dataset.root={images}", f"dataset.cache={images.parent / 'cache'}"
    plain = fishr_exp(root, tiny=TINY_IMAGES)
    stored = fishr_exp(root, cache, "num_workers=1", "resume=false", tiny=TINY_IMAGES)
    assert plain.status == stored.status == 0, plain.err + stored.err
    one, two = plain.result(), stored.result()
    assert one["accuracy"] == two["accuracy"]
    assert (images.parent / "cache").is_dir()


CHANGING = ("dataset=image_folder", "model=mlp", "dataset.image_size=8", "test_domains=[sketch]",
            "batch_size=2", "trainer=erm", "checkpoint_every=1")  # fmt: skip


def test_a_stopped_run_does_not_go_on_over_other_data(
    fishr_exp: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*CHANGING, f"dataset.root={images}")
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert fishr_exp(*words).status == 130
    gone = images / "photo" / "cat" / "0.png"
    content = gone.read_bytes()
    gone.unlink()
    refused = fishr_exp(*words)
    assert refused.status == 2
    count = len(list((images / "photo").rglob("*.png")))
    said = f"not those that this run was started with (photo has {count} samples, {count + 1} befo"
    assert said in refused.err
    assert "resume=false" in refused.err
    gone.write_bytes(content)
    assert "continuing" in fishr_exp(*words).err


def test_a_done_run_says_that_its_data_have_changed(
    fishr_exp: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*CHANGING, f"dataset.root={images}")
    first = fishr_exp(*words)
    assert first.result()["data"] == json.loads((first.folder / "data.json").read_text())
    assert "changed" not in fishr_exp(*words).err
    (images / "photo" / "cat" / "0.png").rename(images / "photo" / "cat" / "renamed.png")
    monkeypatch.setattr(changes, "_known_data", {})  # of this process
    again = fishr_exp(*words)
    assert again.status == 0
    assert "warning: the data have changed since this run: photo has other names" in again.err
    assert again.result() == first.result()
    shutil.rmtree(images)  # it need not be there any more
    assert fishr_exp(*words).status == 0


def test_a_run_of_an_earlier_version_goes_on_without_digests(
    fishr_exp: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*CHANGING, f"dataset.root={images}")
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        stopped = fishr_exp(*words)
    (stopped.folder / "data.json").unlink()
    done = fishr_exp(*words)
    assert done.status == 0
    assert "continuing" in done.err
    assert set(done.result()["data"]) == {"photo", "sketch", "cartoon"}


def test_a_run_on_names_that_are_not_utf8(fishr_exp: Command, images: Path) -> None:
    """The root, a domain, a class and images: escaped in records and in the log."""
    root = os.fsencode(images.parent) + b"/im\xe8ges"
    os.rename(images, root)
    os.rename(root + b"/photo", root + b"/ph\xf6to")
    for domain in (b"ph\xf6to", b"cartoon", b"sketch"):
        os.rename(root + b"/" + domain + b"/cat", root + b"/" + domain + b"/c\xe4t")
    with open(root + b"/cartoon/c\xe4t/\xe9.png", "w") as file:
        file.write("no image")
    words = (f'dataset.root="{os.fsdecode(root)}"', "dataset.on_bad_image=skip")
    outcome = fishr_exp(*words, tiny=TINY_IMAGES)
    assert outcome.status == 0, outcome.err
    assert outcome.result()["counts"]["ph\\xf6to"] == {"train": 10, "validation": 2}
    assert outcome.records()[0]["accuracy"].keys() == {"cartoon", "ph\\xf6to", "sketch"}
    log = (outcome.folder / "fishr-exp.log").read_text(encoding="utf-8")
    assert "/im\\xe8ges/cartoon/c\\xe4t/\\xe9.png (" in log
    assert "skipped" in log
    assert "Logging error" not in outcome.err
    again = fishr_exp(*words, tiny=TINY_IMAGES)  # the name of the root is read back as it was
    assert again.status == 0, again.err
    assert "done already" in again.err
    failed = fishr_exp(words[0], "seed=1", tiny=TINY_IMAGES)
    assert failed.status == 1
    assert "c\\xe4t/\\xe9.png: the image cannot be read (" in failed.result()["error"]
