"""Datasets fetched from a local server that behaves as badly as servers do, unpacked, arranged."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from omegaconf import OmegaConf

from fishr_exp.configuration.options import conf_dir
from fishr_exp.core.errors import ConfigError
from fishr_exp.data.download import download as module
from fishr_exp.data.download import transfer, unpacking
from fishr_exp.data.download.sources import SOURCES, File

PACS = ("art_painting", "cartoon", "photo", "sketch")


@dataclass
class Page:
    """How the server answers for one path."""

    content: bytes = b""
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # bytes that the next answers break off after
    states: list[int] = field(default_factory=list)  # the next answers' states, instead of a body
    ranges: bool = True  # whether a Range is heeded
    blind: bool = False  # whether If-Range is not
    kind: str = "application/zip"
    asked: list[dict] = field(default_factory=list)  # headers of the requests
    turns: dict[int, tuple[bytes, str]] = field(default_factory=dict)  # changes before request n


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        page.asked.append(dict(self.headers))
        if len(page.asked) in page.turns:
            page.content, page.etag = page.turns[len(page.asked)]
        if page.states:
            self.send_error(page.states.pop(0))
            return
        start, total = 0, len(page.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = page.blind or self.headers.get("If-Range") in (None, page.etag)
        if wanted and page.ranges and current:
            start = int(wanted.group(1))
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = page.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", page.kind)
        if page.etag:
            self.send_header("ETag", page.etag)
        self.end_headers()
        if page.cuts:
            body, self.close_connection = body[: page.cuts.pop(0)], True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "_PAUSE", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        one.pages = {}
        one.handle_error = lambda *_: None  # a client that hangs up is no error here
        one.at = f"http://127.0.0.1:{one.server_address[1]}"
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield one
        one.shutdown()


def zipped(names, content=b"pixels"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, content + name.encode())
    return stream.getvalue()


def tarred(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = zipped([f"kfold/{domain}/dog/{i}.png" for domain in PACS for i in range(3)])


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def source(server, monkeypatch):
    """A dataset with one archive, at /a/set.zip and at /b/set.zip."""

    def make(checksum="", **changes):
        urls = (f"{server.at}/a/set.zip", f"{server.at}/b/set.zip")
        file = File("set.zip", urls, checksum, "a friend" if checksum else "")
        one = SOURCES["pacs"]._replace(files=(file,), by_hand="", datasets=("set",), **changes)
        monkeypatch.setitem(SOURCES, "set", one._replace(folder="set"))
        return one

    make()
    return make


@pytest.fixture
def get(tmp_path):
    said = []

    def call(name="set", mirrors=()):
        said.clear()
        return module.download(name, tmp_path, mirrors, said.append)

    call.said = said
    return call


def images(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_dataset_is_fetched_unpacked_and_arranged(server, source, get, tmp_path):
    page = server.pages["/a/set.zip"] = Page(ARCHIVE)
    target = get()
    assert images(target) == [f"{d}/dog/{i}.png" for d in PACS for i in range(3)]
    sha256 = hashlib.sha256(ARCHIVE).hexdigest()
    assert (tmp_path / "set.zip.sha256").read_text() == f"{sha256}  set.zip\n"
    assert any(sha256 in line and "no published checksum" in line for line in get.said)
    assert any("untested" in line for line in get.said)
    left = {p.name for p in tmp_path.iterdir()} - {".set.lock"}  # some systems remove locks
    assert left == {"set", "set.zip", "set.zip.sha256"}
    assert get() == target
    assert get.said == [f"{target} exists: nothing to do"]
    assert len(page.asked) == 1


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_a_broken_transfer_is_taken_up_where_it_broke(server, source, get, etag, tmp_path):
    page = server.pages["/a/set.zip"] = Page(ARCHIVE, etag, cuts=[100, 50])
    get()
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE
    assert [headers.get("Range") for headers in page.asked] == [None, "bytes=100-", "bytes=150-"]
    validator = etag if etag == '"one"' else None  # a weak one must not be sent
    assert [headers.get("If-Range") for headers in page.asked] == [None, validator, validator]


def test_another_call_takes_it_up_too(server, source, get, monkeypatch, tmp_path):
    page = server.pages["/a/set.zip"] = Page(ARCHIVE, cuts=[100, 0, 0, 0, 0, 0, 0])
    server.pages["/b/set.zip"] = Page(states=[503] * 20)
    with pytest.raises(ConfigError, match="no address provided it") as error:
        get()
    assert "503" in str(error.value)
    assert (tmp_path / "set.zip.part").read_bytes() == ARCHIVE[:100]
    page.cuts, asked = [], len(page.asked)
    get()
    assert page.asked[asked]["Range"] == "bytes=100-"
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE
    assert not list(tmp_path.glob("set.zip.part*"))


@pytest.mark.parametrize("blind", [False, True], ids=["heeds If-Range", "does not"])
@pytest.mark.parametrize("longer", [0, 10], ids=["same size", "longer"])
def test_a_changed_file_is_not_glued(server, source, get, blind, longer, tmp_path):
    old = bytes(len(ARCHIVE) - longer)
    server.pages["/a/set.zip"] = Page(
        old, '"old"', cuts=[100], blind=blind, turns={2: (ARCHIVE, '"new"')}
    )
    get()
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE


def test_a_shorter_file_without_etag_is_not_glued(server, source, get, tmp_path):
    server.pages["/a/set.zip"] = Page(
        bytes(len(ARCHIVE) + 999), None, cuts=[len(ARCHIVE) + 9], turns={2: (ARCHIVE, None)}
    )
    get()  # there is nothing at that place: 416
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE


def test_a_server_without_ranges_gives_all_again(server, source, get, tmp_path):
    server.pages["/a/set.zip"] = Page(ARCHIVE, cuts=[100], ranges=False)
    get()
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE


def test_a_file_that_always_changes_ends_in_a_line(server, source, get):
    turns = {n: (bytes(500 + n), f'"{n}"') for n in range(1, 50)}
    page = server.pages["/a/set.zip"] = Page(cuts=[100] * 50, turns=turns)
    with pytest.raises(ConfigError, match="no address provided it"):
        get()
    assert len(page.asked) < 20


def test_a_busy_server_is_asked_again(server, source, get):
    page = server.pages["/a/set.zip"] = Page(ARCHIVE, states=[503, 429])
    get()
    assert len(page.asked) == 3


def test_mirrors_are_tried_in_order(server, source, get, tmp_path):
    server.pages["/a/set.zip"] = Page(b"<html>Do you agree?</html>", kind="text/html; charset=utf8")
    server.pages["/b/set.zip"] = Page(ARCHIVE)
    mine = server.pages["/mine/set.zip"] = Page(states=[404])
    get(mirrors=[f"{server.at}/none", f"{server.at}/mine/"])
    assert len(mine.asked) == len(server.pages["/b/set.zip"].asked) == 1
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE


def test_each_address_says_why_it_gave_nothing(server, source, get):
    server.pages["/a/set.zip"] = Page(b"<html>", kind="text/html")
    with pytest.raises(ConfigError) as error:
        get(mirrors=["http://127.0.0.1:1", "http://"])
    said = str(error.value)
    assert "http://127.0.0.1:1/set.zip (Connection refused" in said
    assert "http:/set.zip (Invalid URL" in said
    assert f"{server.at}/a/set.zip (returned a web page, not the file)" in said
    assert f"{server.at}/b/set.zip (404 Not Found)" in said
    assert said.endswith("yourself and run the command again")


def test_a_mirror_with_another_file_is_passed_over(server, source, get, tmp_path):
    source(md5(ARCHIVE))
    server.pages["/a/set.zip"] = Page(zipped(["kfold/evil.png"]))
    server.pages["/b/set.zip"] = Page(ARCHIVE)
    get()
    assert (tmp_path / "set.zip").read_bytes() == ARCHIVE
    assert (tmp_path / "set.zip.refused").read_bytes() == server.pages["/a/set.zip"].content
    assert any("its MD5 is the one stated by a friend" in line for line in get.said)


def test_without_another_mirror_both_checksums_are_named(server, source, get, tmp_path):
    source(md5(b"what was published"))
    server.pages["/a/set.zip"] = Page(ARCHIVE)
    with pytest.raises(ConfigError) as error:
        get()
    assert f"its MD5 is {md5(ARCHIVE)}, not {md5(b'what was published')} as stated" in str(
        error.value
    )
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "set.zip").exists()


def test_a_later_download_is_compared_with_the_first(server, source, get, tmp_path):
    server.pages["/a/set.zip"] = page = Page(ARCHIVE)
    target = get()
    shutil.rmtree(target)
    (tmp_path / "set.zip").unlink()
    page.content = zipped([f"kfold/{domain}/cat/0.png" for domain in PACS])
    with pytest.raises(ConfigError, match=r"as in set\.zip\.sha256"):
        get()
    page.content = ARCHIVE
    assert get() == target


def test_an_archive_that_lies_there_is_used(server, source, get, tmp_path):
    (tmp_path / "set.zip").write_bytes(ARCHIVE)
    assert (get() / "photo/dog/0.png").is_file()
    source(md5(b"another"))
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ConfigError, match="its MD5 is"):
        get()


def test_what_must_be_got_by_hand_is_said_in_one_line(source, get, tmp_path):
    with pytest.raises(ConfigError) as error:
        get("pacs")
    said = str(error.value)
    assert "no license was found" in said
    assert f"put PACS.zip into {tmp_path} and run the command again" in said
    assert f"{tmp_path}/pacs/{{art_painting,cartoon,photo,sketch}}/class/image" in said
    assert "\n" not in said
    (tmp_path / "PACS.zip").write_bytes(ARCHIVE)  # any packing does, and it is told
    assert (get("pacs") / "sketch/dog/2.png").is_file()
    assert any("packed differently" in line for line in get.said)


def test_a_folder_that_lacks_a_domain_is_left_alone(server, source, get, tmp_path):
    (tmp_path / "set" / "photo" / "dog").mkdir(parents=True)
    with pytest.raises(ConfigError, match="lacks art_painting, cartoon, sketch; move it"):
        get()


def test_nothing_is_fetched_that_will_not_fit(server, source, get, monkeypatch, tmp_path):
    server.pages["/a/set.zip"] = Page(ARCHIVE)
    usage = shutil._ntuple_diskusage(10**6, 10**6, int(1.5 * len(ARCHIVE)))
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"need 0\.0 GB, and 0\.0 are free; free some space"):
        get()
    assert not (tmp_path / "set.zip").exists()


EVIL = {
    "zip": zipped([*(f"{domain}/dog/0.png" for domain in PACS), "../evil.png"]),
    "tar.gz": tarred({f"{d}/dog/0.png": b"" for d in PACS} | {"../../evil.png": b""}),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_member_that_leads_out_of_the_folder_is_refused(server, source, get, kind, tmp_path):
    file = File(f"set.{kind}", (f"{server.at}/a",))
    SOURCES["set"] = SOURCES["set"]._replace(files=(file,))
    server.pages["/a"] = Page(EVIL[kind])
    with pytest.raises(ConfigError, match=r"evil\.png is outside the folder"):
        get()
    assert not list(tmp_path.rglob("evil.png"))
    assert not list(tmp_path.parent.glob("evil.png"))
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / ".set.unpacking").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.zip", ARCHIVE[:-40]),
        ("set.tar.gz", tarred({"a": bytes(9999)})[:-20]),
        ("set.gz", gzip.compress(bytes(9999))[:-10]),
    ],
    ids=["zip", "tar.gz", "gz"],  # these bytes hold the time
)
def test_a_damaged_archive_is_named(server, source, get, name, content, tmp_path):
    SOURCES["set"] = SOURCES["set"]._replace(files=(File(name, (f"{server.at}/a",)),))
    server.pages["/a"] = Page(content)
    with pytest.raises(ConfigError, match=rf"it is damaged \(.*\); now called {name}.refused; run"):
        get()


def test_after_a_page_in_place_of_an_archive_the_archive_is_taken(source, get, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"<html>please log in")
    with pytest.raises(ConfigError, match="it is damaged"):
        get()
    (tmp_path / "set.zip").write_bytes(ARCHIVE)
    assert (get() / "photo/dog/0.png").is_file()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("File is encrypted"), r"File is encrypted\); unpack it yourself"),
        (NotImplementedError("That compression"), r"That compression\); unpack it yourself"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "choose another folder"),
    ],
    ids=["encrypted", "deflate64", "full", "long"],
)
def test_what_cannot_be_unpacked_is_one_line(source, get, tmp_path, monkeypatch, error, said):
    def extract(*_):
        raise error

    (tmp_path / "set.zip").write_bytes(ARCHIVE)
    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    with pytest.raises(ConfigError, match=said):
        get()


def test_a_server_that_tells_no_size_at_first_is_resumed(server):
    known = {"etag": '"a"', "modified": None, "size": None}
    assert not transfer._differ(known, {"etag": '"a"', "modified": None, "size": 9})
    assert transfer._differ(known, {"etag": '"b"', "modified": None, "size": 9})


def test_an_archive_with_other_content_is_told(server, source, get):
    server.pages["/a/set.zip"] = Page(zipped(["readme.txt"]))
    with pytest.raises(ConfigError, match=r"readme.txt: is the content .* no folder with"):
        get()


@pytest.mark.parametrize("mirror", ["ftp://host/dir", "/a/folder"])
def test_an_address_of_another_kind_is_refused(source, get, mirror):
    with pytest.raises(ConfigError, match=r"--mirror=.* must begin with http"):
        get(mirrors=[mirror])


def serve(server, monkeypatch, key, files):
    """Serve these files as those of a dataset."""
    one = SOURCES[key]
    assert {file.name for file in one.files} == set(files)
    monkeypatch.setitem(SOURCES, key, one._replace(
        files=tuple(f._replace(urls=(), md5=md5(files[f.name]) if f.md5 else "") for f in one.files)
    ))  # fmt: skip
    for name, content in files.items():
        server.pages[f"/{name}"] = Page(content, kind="application/octet-stream")


def test_domain_net_is_what_its_lists_name(server, monkeypatch, get):
    files = {}
    for domain in SOURCES["domain_net"].holds:
        paths = [f"{domain}/a cat/{i}.jpg" for i in range(4)]
        files[f"{domain}.zip"] = zipped(paths)
        files[f"{domain}_train.txt"] = f"{paths[0]} 0\n{paths[2]} 0\n".encode()
        files[f"{domain}_test.txt"] = f"{paths[3]} 0\n".encode()
    serve(server, monkeypatch, "domain_net", files)
    target = get("domain_net", [server.at])
    assert images(target) == [
        f"{domain}/a cat/{i}.jpg" for domain in SOURCES["domain_net"].holds for i in (0, 2, 3)
    ]


def test_terra_incognita_follows_its_annotations(server, monkeypatch, get):
    kinds = {1: "bobcat", 2: "empty", 3: "car"}
    shown = {"a": (38, [1]), "b": (43, [1, 2, 1]), "c": (46, [2, 3]), "d": (100, [2]),
             "e": (38, [3]), "f": (7, [1]), "g": (38, [])}  # fmt: skip
    halves = [dict(list(shown.items())[:3]), dict(list(shown.items())[3:])]
    annotations = {
        f"eccv_18_annotation_files/{i}.json": json.dumps({
            "categories": [{"id": n, "name": name} for n, name in kinds.items()],
            "images": [{"id": key, "location": place, "file_name": f"{key}.jpg"}
                       for key, (place, _) in half.items()],
            "annotations": [{"image_id": key, "category_id": n}
                            for key, (_, numbers) in half.items() for n in numbers],
        }).encode()
        for i, half in enumerate(halves)
    }  # fmt: skip
    serve(server, monkeypatch, "terra_incognita", {
        "eccv_18_all_images_sm.tar.gz": tarred(
            {f"eccv_18_all_images_sm/{key}.jpg": key.encode() for key in shown}
        ),
        "eccv_18_annotations.tar.gz": tarred(annotations),
    })  # fmt: skip
    target = get("terra_incognita", [server.at])
    assert images(target) == [
        "location_100/empty/d.jpg", "location_38/bobcat/a.jpg", "location_43/bobcat/b.jpg",
        "location_43/empty/b.jpg", "location_46/empty/c.jpg",
    ]  # fmt: skip
    assert (target / "location_43/empty/b.jpg").read_bytes() == b"b"
    assert "24330" in get.said[-1]


VLCS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
JIGEN = {"CALTECH": "Caltech101", "LABELME": "LabelMe", "SUN": "SUN09", "PASCAL": "VOC2007"}


def test_vlcs_as_domainbed_packed_it(server, monkeypatch, get):
    archive = tarred({f"VLCS/{domain}/bird/0.jpg": b"" for domain in VLCS})
    serve(server, monkeypatch, "vlcs", {"VLCS.tar.gz": archive})
    assert images(get("vlcs", [server.at])) == [f"{domain}/bird/0.jpg" for domain in VLCS]


def test_vlcs_as_jigens_authors_packed_it(server, monkeypatch, get):
    parts = ("crossval", "full", "test", "train")
    names = {f"VLCS/{domain}/{part}/{n}/imgs_{n}.jpg": f"{domain}{part}{n}".encode()
             for domain in JIGEN for part in parts for n in range(5)}  # fmt: skip
    serve(server, monkeypatch, "vlcs", {"VLCS.tar.gz": tarred(names)})
    target = get("vlcs", [server.at])
    assert images(target) == sorted(
        f"{domain}/{name}/{part}_imgs_{n}.jpg" for domain in VLCS
        for n, name in enumerate(("bird", "car", "chair", "dog", "person"))
        for part in ("full", "test")
    )  # fmt: skip
    assert (target / "VOC2007/chair/test_imgs_2.jpg").read_bytes() == b"PASCALtest2"


def test_mnist_can_be_read_by_torchvision(server, monkeypatch, get, tmp_path):
    from fishr_exp.core._torchvision import torchvision

    def idx(magic, *shape):
        head = b"".join(n.to_bytes(4, "big") for n in (magic, *shape))
        return gzip.compress(head + bytes(functools.reduce(int.__mul__, shape)))

    serve(server, monkeypatch, "mnist", {
        "train-images-idx3-ubyte.gz": idx(2051, 3, 28, 28),
        "train-labels-idx1-ubyte.gz": idx(2049, 3),
        "t10k-images-idx3-ubyte.gz": idx(2051, 2, 28, 28),
        "t10k-labels-idx1-ubyte.gz": idx(2049, 2),
    })  # fmt: skip
    assert get("rotated_mnist", [server.at]) == tmp_path / "MNIST"
    assert len(torchvision.datasets.MNIST(str(tmp_path), train=True)) == 3
    assert len(torchvision.datasets.MNIST(str(tmp_path), train=False)) == 2


@pytest.mark.parametrize("key", SOURCES)
def test_the_table_of_sources(key):
    """Domains are those of the configuration; what is fetched has an address, and no other."""
    source = SOURCES[key]
    for dataset in source.datasets:
        config = OmegaConf.load(conf_dir() / "dataset" / f"{dataset}.yaml").dataset
        assert tuple(config.get("domains", source.holds)) == source.holds
    for file in source.files:
        assert bool(file.urls) != bool(source.by_hand)
        assert all(url.startswith(("http://", "https://")) for url in file.urls)
        assert bool(file.md5) == bool(file.md5_source)
        assert re.fullmatch(r"[0-9a-f]{32}|", file.md5)


def test_the_sources_name_the_checksums_that_torchvision_has():
    from fishr_exp.core._torchvision import torchvision

    assert {(f.name, f.md5) for f in SOURCES["mnist"].files} == set(
        torchvision.datasets.MNIST.resources
    )


def test_the_command(server, source, tmp_path, capsys):
    from fishr_exp.cli import data as data_cli

    server.pages["/a/set.zip"] = Page(ARCHIVE)
    (tmp_path / "PACS.zip").write_bytes(ARCHIVE)
    assert data_cli.main(["download", "pacs", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"check it with: fishr-data check pacs {tmp_path}/pacs"
    assert data_cli.main(["download", "pasc", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fishr-data: download=pasc: no source is known; choose from pacs, vlcs")
    assert len(err.splitlines()) == 1


def test_ctrl_c_says_that_the_same_command_goes_on(source, tmp_path, capsys, monkeypatch):
    from fishr_exp.cli import data as data_cli

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fetch", stopped)
    assert data_cli.main(["download", "set", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "fishr-data: stopped; the same command resumes\n"
