"""Attacks on `fishr-data download`: servers that break every rule, archives, what lies there.

Of every attack: no traceback, status 2 and one line, nothing outside the folder, nothing that looks
as if it were complete, no end without a bound. From a hostile server, the next mirror is taken.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fishr_exp.cli import data as data_cli
from fishr_exp.data.download import transfer, unpacking
from fishr_exp.data.download.sources import SOURCES, File
from tests.hostile.servers import RawServer, in_turn, raw_server, reply, says, without_end

PACS = ("art_painting", "cartoon", "photo", "sketch")
OUTSIDE = "outside.txt"  # what an archive tries to write beside its folder


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipFile], None] = lambda _: None):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        change(archive)
    return stream.getvalue()


def tarred(*members: tuple[str, dict[str, Any]] | tarfile.TarInfo, packed: str = "gz") -> bytes:
    """Pack the dataset, and further members: names with attributes of their `TarInfo`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{packed}") as archive:
        for name, content in GOOD.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, attributes in members:
            member = tarfile.TarInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            content = bytes(min(max(0, member.size), 1 << 22))
            archive.fileobj.write(member.tobuf() + content)  # any size may be stated
    return stream.getvalue()


GOOD = {f"kfold/{domain}/dog/0.png": domain.encode() for domain in PACS}
ZIP = zipped(GOOD)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    with raw_server() as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a user, who has other things in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    return folder


class Download:
    """Calls the command, and checks what holds after every attack."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.folder, self.patch, self.capsys = folder, patch, capsys

    def source(self, *files: File, key: str = "set", **changes: Any) -> None:
        one = SOURCES["pacs"] if key == "set" else SOURCES[key]
        by_hand = changes.pop("by_hand", "")
        new = one._replace(files=files or one.files, by_hand=by_hand, datasets=(key,), folder=key)
        self.patch.setitem(SOURCES, key, new._replace(**changes))

    def __call__(self, *words: str, key: str = "set") -> tuple[int, str, str]:
        status = data_cli.main(["download", key, str(self.folder), *words])
        out, err = self.capsys.readouterr()
        return status, out, err

    def is_refused(self, *words: str, key: str = "set", say: str = "") -> str:
        """Call the command, which must refuse in one line that contains `say`; return the line."""
        status, _, err = self(*words, key=key)
        assert status == 2, err
        assert err.startswith("fishr-data: "), err
        assert len(err.splitlines()) == 1, err
        assert len(err) < 3000, err
        assert err.rstrip().isprintable(), err
        assert say in err, err
        self.left_nothing(key)
        return err

    def left_nothing(self, key: str) -> None:
        names = {path.name for path in self.folder.iterdir()}
        assert not names & {key, f".{key}.lock", f".{key}.unpacking"}, names
        assert (self.folder / "precious.txt").read_text() == "mine"
        assert {path.name for path in self.folder.parent.iterdir()} == {self.folder.name}

    def succeeds(self, *words: str, key: str = "set") -> str:
        status, out, err = self(*words, key=key)
        assert (status, err) == (0, ""), err
        for domain in SOURCES[key].holds:
            assert any((self.folder / key / domain).iterdir())
        assert not {f".{key}.lock", f".{key}.unpacking"} & {p.name for p in self.folder.iterdir()}
        return out


@pytest.fixture
def download(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Download:
    call = Download(folder, monkeypatch, capsys)
    call.source(File("set.zip", ("http://127.0.0.1:1/unused",)))
    return call


def free(patch: pytest.MonkeyPatch, folder: Path, space: int) -> None:
    """Let the disk have so many free bytes, less what the test has written."""

    def usage(_: object) -> Any:
        taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return shutil._ntuple_diskusage(10**9, 0, space - taken)  # type: ignore[attr-defined]

    patch.setattr(unpacking.shutil, "disk_usage", usage)


# ----------------------------------------------------------------------------------------- servers

HALF = len(ZIP) // 2
CUT = says(reply(ZIP[:HALF], length=len(ZIP), ETag='"one"'))
REDIRECTS = (
    "http://", "http://[::1", "http://[", "//", "http:///x", "http://a b c/", "http://..", "http://.",
    "http://127.0.0.1:99999/x", "http://127.0.0.1:-1/", "http://127.0.0.1:abc/", "http://:80/",
    f"http://{'a' * 300}.example/", "http://\xff\xfe/", "ftp://127.0.0.1/set.zip",
    "file:///etc/passwd", "javascript:alert(1)", "http://127.0.0.1:1/set.zip", "data:,x",
    "\\\\x\\y",
    "http://xn--\xe4/", "http://a\tb/", "http://user:pass word@[/",
)  # fmt: skip
SERVERS = {
    # ranges
    "206 without a range asked for": says(reply(ZIP, "206 Partial Content")),
    "206 of all without a range asked for": says(
        reply(ZIP, "206 Partial Content", Content_Range=f"bytes 0-{len(ZIP) - 1}/{len(ZIP)}")
    ),
    "206 of a part without a range asked for": says(
        reply(ZIP[5:], "206 Partial Content", Content_Range=f"bytes 5-{len(ZIP) - 1}/{len(ZIP)}")
    ),
    "206 with a range that is none": says(
        reply(ZIP, "206 Partial Content", Content_Range="bytes nothing/much")
    ),
    "416 at once": says(reply(b"", "416 Range Not Satisfiable", Content_Range="bytes */0")),
    "416 after a part": in_turn(CUT, says(reply(b"", "416 Range Not Satisfiable"))),
    "a part, then 206 from another place, again and again": in_turn(
        *[CUT, says(reply(ZIP, "206 Partial Content",
                          Content_Range=f"bytes 1-{len(ZIP)}/{len(ZIP)}"))] * 20
    ),
    "a part, then 206 of another file, again and again": in_turn(
        *[CUT, says(reply(ZIP[HALF:], "206 Partial Content", ETag='"two"',
                          Content_Range=f"bytes {HALF}-{len(ZIP) - 1}/{len(ZIP)}"))] * 20
    ),
    "a part, then 206 without Content-Range": in_turn(
        *[CUT, says(reply(ZIP[HALF:], "206 Partial Content"))] * 20
    ),
    "a part, then 206 with more than it states": in_turn(
        CUT, without_end(reply(b"", "206 Partial Content", length=10**12, ETag='"one"',
                               Content_Range=f"bytes {HALF}-{len(ZIP) - 1}/{len(ZIP)}"), ZIP),
    ),
    "a part, then 206 of a size with 5000 digits": in_turn(
        *[CUT, says(reply(ZIP[HALF:], "206 Partial Content",
                          Content_Range=f"bytes {'9' * 5000}-{'9' * 5001}/{'9' * 5001}"))] * 20
    ),
    "one byte more at a time": in_turn(
        *[says(reply(ZIP[: n + 1], length=len(ZIP))) for n in range(60)]
    ),
    # sizes
    "without end": without_end(reply(b"", length=""), bytes(1 << 16)),
    "without end, in chunks": without_end(
        reply(b"", length="", Transfer_Encoding="chunked"), b"ffff\r\n" + bytes(0xFFFF) + b"\r\n"
    ),
    "a size of 10^15 bytes": says(reply(ZIP, length=10**15)),
    "a size of 5000 digits": says(reply(b"x", length="9" * 5000)),
    "a negative size": says(reply(b"x", length=-5)),
    "a size that is no number": says(reply(b"x", length="²")),
    "two sizes": says(reply(b"x", length="10, 20")),
    "less than it states, always": says(reply(ZIP[:-9], length=len(ZIP))),
    "nothing": says(reply(b"")),
    "a chunk size that is no number": says(
        reply(b"zz\r\nabc\r\n", length="", Transfer_Encoding="chunked")
    ),
    "a negative chunk size": says(reply(b"-5\r\nabc\r\n", length="", Transfer_Encoding="chunked")),
    "a chunk of 2^64 bytes": says(
        reply(b"ffffffffffffffff\r\nabc", length="", Transfer_Encoding="chunked")
    ),
    "a chunk that is cut off": says(
        reply(b"ff\r\nabc", length="", Transfer_Encoding="chunked")
    ),
    # states
    "a state that is no number": says(b"HTTP/1.1 abc OK\r\n\r\n"),
    "an unknown state": says(reply(ZIP, "999 Whatever")),
    "no HTTP": says(b"\x00\x01garbage\r\n\r\n"),
    "an answer without a head": says(b"<html>hello</html>"),
    "hanging up": says(b""),
    "a reason that controls the terminal": says(reply(b"", "404 \x1b[2J\x1b]0;pwned\x07")),
    "a reason of 30 kB": says(reply(b"", f"404 {'x' * 30000}")),
    "204": says(reply(b"", "204 No Content")),
    "304": says(reply(b"", "304 Not Modified")),
    "401": says(reply(b"", "401 Unauthorized", WWW_Authenticate="Basic")),
    "403": says(reply(b"", "403 Forbidden")),
    "410": says(reply(b"", "410 Gone")),
    "500 for ever": says(reply(b"", "500 Internal Server Error")),
    "503 for ever": says(reply(b"", "503 Service Unavailable", Retry_After="99999")),
    "429 with a year to wait": says(reply(b"", "429 Too Many Requests", Retry_After="31536000")),
    # headers
    "a thousand headers": says(reply(ZIP, **{f"X_{i}": "y" for i in range(1000)})),
    "a header of 1 MB": says(reply(ZIP, X_long="y" * (1 << 20))),
    "a header with control characters": says(
        reply(b"", "404 Not Found", X_bad="a\x00b\x1b[31m", ETag="\x07")
    ),
    # bodies
    "a web page": says(reply(b"<html>accept our terms", Content_Type="text/html")),
    "a web page that says it is a zip": says(
        reply(b"<html>accept our terms", Content_Type="application/zip")
    ),
    "another archive": says(reply(zipped({"readme.txt": b"hello"}))),
    "the right archive, compressed again": says(
        reply(gzip.compress(ZIP), Content_Encoding="gzip")
    ),
    # redirects
    "a redirect to itself": says(reply(b"", "302 Found", Location="/a/set.zip")),
    "a redirect to nowhere": says(reply(b"", "302 Found")),
    "a redirect to an empty address": says(reply(b"", "302 Found", Location="")),
    **{f"a redirect to {where[:30]!r}": says(reply(b"", "302 Found", Location=where))
       for where in REDIRECTS},
}  # fmt: skip
MD5 = hashlib.md5(ZIP, usedforsecurity=False).hexdigest()


def hostile_source(download: Download, server: RawServer, *places: str) -> None:
    urls = tuple(f"{server.at}{place}/set.zip" for place in places)
    download.source(File("set.zip", urls, MD5, "a friend"))


@pytest.mark.parametrize("attack", SERVERS)
def test_a_hostile_server(attack, server, download, folder, monkeypatch) -> None:
    """It alone gives one line; then, with a good mirror behind it, that one is taken."""
    free(monkeypatch, folder, 4 << 20)
    hostile_source(download, server, "/a")
    server.answers["/a/set.zip"] = SERVERS[attack]
    download.is_refused(say="; " if "10^15" in attack or "end" in attack else "--mirror URL")
    assert len(server.asked) < 100
    assert not (folder / "set.zip").exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 << 20
    server.answers["/b/set.zip"] = says(reply(ZIP))
    hostile_source(download, server, "/a", "/b")
    download.succeeds()
    assert (folder / "set.zip").read_bytes() == ZIP


def silent_after(content: bytes) -> Callable[[RawServer], Any]:
    def answer(server: RawServer) -> Any:
        def wait(write: Any, _: object) -> None:
            write(content)
            server.closing.wait(30)

        return wait

    return answer


SILENT = {
    "at once": silent_after(b""),
    "after a line": silent_after(b"HTTP/1.1 200 OK\r\n"),
    "after the headers": silent_after(reply(b"", length=len(ZIP))),
    "after a part": silent_after(reply(ZIP[:HALF], length=len(ZIP))),
}


@pytest.mark.parametrize("when", SILENT)
def test_a_server_that_falls_silent(when, server, download, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "_SILENCE", (0.05, 0.05))
    hostile_source(download, server, "/a")
    server.answers["/a/set.zip"] = SILENT[when](server)
    status, out, err = download()
    assert status == 2
    assert "no answer for 0.05 seconds; trying again" in out
    assert f"{server.at}/a/set.zip (no answer for 0.05 seconds)" in err
    assert len(server.asked) == 2


def test_silence_is_told_after_ten_seconds() -> None:
    assert transfer._SILENCE[0] == 10


def test_a_server_that_drips(server, download, monkeypatch) -> None:
    def drip(write: Any, _: object) -> None:
        write(reply(b"", length=len(ZIP)))
        while not server.closing.wait(0.01):
            write(b"x")

    monkeypatch.setattr(transfer, "_WINDOW", 0.02)
    hostile_source(download, server, "/a")
    server.answers["/a/set.zip"] = drip
    assert "bytes came in 0.02 seconds" in download.is_refused()


def test_an_archive_that_does_not_fit_is_told_although_another_mirror_fails(
    server, download, folder, monkeypatch
) -> None:
    free(monkeypatch, folder, 100)
    hostile_source(download, server, "/a", "/none")
    server.answers["/a/set.zip"] = says(reply(ZIP))
    download.is_refused(say="free some space, or choose another folder")


def test_a_password_in_a_mirror_is_not_told(server, download) -> None:
    at = server.at.replace("http://", "http://me:sesame-open@")
    download.source(File("set.zip", ()))
    server.answers["/x/set.zip"] = says(reply(b"", "302 Found", Location="http://[::1"))
    for mirror in (f"{at}/none", f"{at}/x", "http://me:sesame-open@[::1"):
        assert "sesame" not in download.is_refused("--mirror", mirror)


WORDS = {
    "an unknown dataset": (["nothing", "{0}"], "no source is known"),
    "an empty dataset": (["", "{0}"], "no source is known"),
    "a dataset that must be got by hand": (["pacs", "{0}"], "no license was found"),
    "an empty folder": (["pacs", ""], "must name a folder"),
    "blanks as a folder": (["pacs", "  "], "must name a folder"),
    "a folder that is a file": (["mnist", "{0}/precious.txt"], "choose another folder"),
    "a folder below a file": (["mnist", "{0}/precious.txt/x"], "choose another folder"),
    "a folder that is a device": (["mnist", "/dev/null"], "choose another folder"),
    "a mirror of another kind": (["pacs", "{0}", "--mirror", "ftp://x"], "must begin with http"),
    "an empty mirror": (["pacs", "{0}", "--mirror", ""], "must begin with http"),
    "a mirror that is a path": (["pacs", "{0}", "--mirror", "/etc"], "must begin with http"),
    "a mirror without a host": (["pacs", "{0}", "--mirror", "http://"], "Invalid URL"),
    "a mirror with a newline": (["pacs", "{0}", "--mirror", "http://a\nb"], "--mirror URL"),
    "a mirror with half a host": (["pacs", "{0}", "--mirror", "http://[::1"], "--mirror URL"),
    "a mirror with a wrong port": (["pacs", "{0}", "--mirror", "http://a:b"], "--mirror URL"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WORDS)
def test_wrong_words(mistake, folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    words, said = WORDS[mistake]
    assert data_cli.main(["download", *(word.format(folder) for word in words)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert said in err
    assert {path.name for path in folder.iterdir()} == {"precious.txt"}


# ---------------------------------------------------------------------------------------- archives


def linked(name: str) -> Callable[[zipfile.ZipFile], None]:
    """Add a link to a zip, as `zip -y` writes it."""

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")

    return add


def patched(content: bytes, place: bytes, offset: int, value: bytes) -> bytes:
    """Change bytes after the last occurrence of a signature."""
    at = content.rindex(place) + offset
    return content[:at] + value + content[at + len(value) :]


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
LINK = {"type": tarfile.SYMTYPE}
DEEP = "/".join("d" * 1200)
ARCHIVES: dict[str, tuple[str, bytes, str]] = {
    # zip
    "zip: a path upward": ("zip", zipped({**GOOD, f"../{OUTSIDE}": b""}), "is outside the folder"),
    "zip: far upward": ("zip", zipped({**GOOD, f"a/../../../{OUTSIDE}": b""}), "is outside"),
    "zip: an absolute path": ("zip", zipped({**GOOD, f"/tmp/{OUTSIDE}": b""}), "is outside"),
    "zip: a link in place of a domain": (
        "zip", zipped({k: v for k, v in GOOD.items() if "photo" not in k}, linked("kfold/photo")),
        "lacks photo (photo: not a folder with content)",
    ),
    "zip: cut off": ("zip", ZIP[:-30], "it is damaged"),
    "zip: empty file": ("zip", b"", "it is damaged"),
    "zip: no member": ("zip", zipped({}), "no folder with art_painting"),
    "zip: text": ("zip", b"hello", "it is damaged"),
    "zip: zeros": ("zip", bytes(4000), "it is damaged"),
    "zip: encrypted": ("zip", patched(ZIP, CENTRAL, 8, b"\x01\x00"), "unpack it you"),
    "zip: an unknown compression": ("zip", patched(ZIP, CENTRAL, 10, b"\x63\x00"), "unpack it you"),
    "zip: states 4 GB": ("zip", patched(ZIP, CENTRAL, 24, b"\xfe\xff\xff\xff"), "free some space"),
    "zip: states less than comes": ("zip", patched(ZIP, CENTRAL, 24, b"\x01\0\0\0"), "it is damag"),
    "zip: a wrong checksum": ("zip", patched(ZIP, CENTRAL, 16, b"abcd"), "it is damaged"),
    "zip: a member at no place": ("zip", patched(ZIP, CENTRAL, 42, b"\xf0\xff\xff\x7f"), "damaged"),
    "zip: two members at one place": ("zip", patched(ZIP, CENTRAL, 42, b"\0\0\0\0"), "it is dama"),
    "zip: a directory at no place": ("zip", patched(ZIP, END, 16, b"\xf0\xff\xff\x7f"), "damaged"),
    "zip: a directory of 4 GB": ("zip", patched(ZIP, END, 12, b"\xf0\xff\xff\xff"), "it is dama"),
    "zip: another local name": ("zip", patched(ZIP, LOCAL, 30, b"XXXX"), "it is damaged"),
    "zip: a member called .": ("zip", zipped({**GOOD, ".": b"x"}), "it is damaged"),
    "zip: a member without a name": ("zip", zipped({**GOOD, "/": b""}), "outside the folder"),
    "zip: a file that is a folder": ("zip", zipped({**GOOD, "kfold/photo": b"x"}), "it is damaged"),
    "zip: a folder in a file": ("zip", zipped({"a": b"x", "a/b": b"x", **GOOD}), "it is damaged"),
    "zip: 1200 folders deep": ("zip", zipped({f"{DEEP}/x": b""}), "more than 64 folders deep"),
    "zip: a name of 300 characters": ("zip", zipped({"n" * 300: b""}), "File name too long"),
    "zip: a name that controls the terminal": (
        "zip", zipped({**GOOD, f"../\x1b[2J\x07{OUTSIDE}": b""}), r"\x1b[2J\x07"),
    "zip: a name of two lines": ("zip", zipped({**GOOD, f"../a\nb{OUTSIDE}": b""}), "../a b"),
    "zip: domains that are files": ("zip", zipped(dict.fromkeys(PACS, b"x")), "not a folder with"),
    "zip: domains that are empty": (
        "zip", zipped({f"{domain}/": b"" for domain in PACS}), "not a folder with content"),
    "zip: a domain is missing": (
        "zip", zipped({k: v for k, v in GOOD.items() if "photo" not in k}), "no folder with art_p"),
    "zip: all zeros after the directory": ("zip", ZIP + bytes(70000), "it is damaged"),
    # tar
    "tar: a path upward": ("tar.gz", tarred((f"../{OUTSIDE}", {})), "is outside the folder"),
    "tar: a link upward": ("tar.gz", tarred(("x", {**LINK, "linkname": "../.."})), "x is a link"),
    "tar: an absolute link": ("tar.gz", tarred(("x", {**LINK, "linkname": "/etc"})), "x is a link"),
    "tar: a link inside, outside once it is arranged": (
        "tar.gz", tarred(("kfold/photo/cat", {**LINK, "linkname": "../../../unpacked"})), "a link"),
    "tar: a link to itself": ("tar.gz", tarred(("x", {**LINK, "linkname": "x"})), "x is a link"),
    "tar: links that double": (
        "tar.gz", tarred(("x", {**LINK, "linkname": "."}), ("y", {**LINK, "linkname": "."})),
        "x is a link"),
    "tar: through a link": (
        "tar.gz", tarred(("x", {**LINK, "linkname": "."}), (f"x/../../{OUTSIDE}", {})), "a link"),
    "tar: a hard link outside": (
        "tar.gz", tarred(("x", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})), "outside"),
    "tar: a hard link to nothing": (
        "tar.gz", tarred(("x", {"type": tarfile.LNKTYPE, "linkname": "none"})), "it is damaged"),
    "tar: a pipe": ("tar.gz", tarred(("x", {"type": tarfile.FIFOTYPE})), "neither a file nor"),
    "tar: a device": ("tar.gz", tarred(("x", {"type": tarfile.CHRTYPE})), "neither a file nor"),
    "tar: a disk": ("tar.gz", tarred(("x", {"type": tarfile.BLKTYPE})), "neither a file nor"),
    "tar: 2^60 bytes": ("tar.gz", tarred(("x", {"size": 2**60})), "free; free some space"),
    "tar: a header of 2 MB": (
        "tar.gz", tarred(("x", {"type": tarfile.XHDTYPE, "size": 1 << 21})), "it is damaged"),
    "tar: a name of 2 MB": (
        "tar.gz", tarred(("x", {"type": tarfile.GNUTYPE_LONGNAME, "size": 1 << 21})), "it is dama"),
    "tar: a file that is a folder": ("tar.gz", tarred(("kfold/photo", {})), "it is damaged"),
    "tar: a folder in a file": (
        "tar.gz", tarred(("kfold/photo/dog/0.png/x", {})), "it is damaged"),
    "tar: 1200 folders deep": ("tar.gz", tarred((f"{DEEP}/x", {})), "more than 64 folders deep"),
    "tar: cut off": ("tar.gz", tarred()[:-25], "it is damaged"),
    "tar: empty file": ("tar.gz", b"", "it is damaged"),
    "tar: text": ("tar.gz", b"hello", "it is damaged"),
    "tar: a zip": ("tar.gz", ZIP, "it is damaged"),
    "tar: no member": ("tar.gz", gzip.compress(bytes(10240)), "no folder with art_painting"),
    "tar: a flipped bit": (  # in the second header, which ends it
        "tar", tarred(packed="")[:1029] + b"\xff" + tarred(packed="")[1030:], "no folder with"),
    "tar: a name that is not UTF-8": (
        "tar", tarred(packed="").replace(b"kfold/photo", b"kfold/ph\xf6to"), ""),
    # gz
    "gz: cut off": ("gz", gzip.compress(bytes(9999))[:-10], "it is damaged"),
    "gz: more than it states": (
        "gz", gzip.compress(bytes(9999))[:-4] + struct.pack("<I", 10), "it is damaged"),
    "gz: states 4 GB": (
        "gz", gzip.compress(bytes(9999))[:-4] + b"\xff\xff\xff\xff", "it is damaged"),
    "gz: 30 MB of zeros": ("gz", gzip.compress(bytes(30 << 20)), "free; free some space"),
    "gz: two files in one": ("gz", gzip.compress(bytes(99)) + gzip.compress(b"x"), "it is damaged"),
    "gz: empty file": ("gz", b"", "no folder with"),
    "gz: text": ("gz", b"hello", "it is damaged"),
}  # fmt: skip
UNTOUCHED = (
    "unpack it you",
    "free; free some space",
    "File name too long",
)  # not the archive's fault


@pytest.mark.parametrize("attack", ARCHIVES)
def test_a_hostile_archive(attack, download, folder, monkeypatch) -> None:
    """It lies in the folder; it is refused, renamed, and not taken for a good one later."""
    kind, content, said = ARCHIVES[attack]
    free(monkeypatch, folder, 8 << 20)
    name = f"set.{kind}"
    download.source(File(name, ()), by_hand="get it by hand")
    (folder / name).write_bytes(content)
    line = download.is_refused(say=said)
    assert not list(folder.parent.rglob(f"*{OUTSIDE}*"))
    if not any(why in line for why in UNTOUCHED):
        assert f"now called {name}.refused" in line
        assert (folder / f"{name}.refused").read_bytes() == content
        assert not (folder / f"{name}.sha256").exists()
        download.is_refused(say="get it by hand")
    (folder / "set.zip").write_bytes(ZIP)
    download.source(File("set.zip", ()), by_hand="get it by hand")
    download.succeeds()


HARMLESS = {
    "zip: a thousand members stated": ("zip", patched(ZIP, END, 10, b"\xe8\x03")),
    "zip: a path with backslashes": ("zip", zipped({**GOOD, f"..\\..\\{OUTSIDE}": b""})),
    "zip: a link beside the domains": ("zip", zipped(GOOD, linked("x"))),
    "zip: a name twice": ("zip", zipped({f"./{k}": v for k, v in GOOD.items()} | GOOD)),
    "zip: a program before it": ("zip", b"#!/bin/sh\n" + ZIP),
    "zip: a comment of 65 kB": ("zip", zipped(GOOD, lambda z: setattr(z, "comment", b"x" * 65535))),
    "tar: a program of root's": ("tar.gz", tarred(("kfold/photo/x", {"mode": 0o6777}))),
    "tar: no permissions": ("tar.gz", tarred(("kfold/photo/x", {"mode": 0}))),
    "tar: an owner of its own": ("tar.gz", tarred(("kfold/photo/x", {"uid": 2**21, "gid": -1}))),
    "tar: an absolute path": ("tar.gz", tarred((f"/{OUTSIDE}", {}))),
    "tar: compressed in another way": ("tar.gz", tarred(packed="xz")),
    "tar: bytes after its end": ("tar.gz", tarred() + gzip.compress(bytes(5000))),
}


@pytest.mark.parametrize("attack", HARMLESS)
def test_what_does_no_harm_is_unpacked(attack, download, folder) -> None:
    kind, content = HARMLESS[attack]
    download.source(File(f"set.{kind}", ()), by_hand="get it by hand")
    (folder / f"set.{kind}").write_bytes(content)
    download.succeeds()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    for path in (folder / "set").rglob("*"):
        assert not path.is_symlink()
        assert not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def annotated(*images: Any, annotations: Any = (), categories: Any = ()) -> bytes:
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode()


IMAGE = {"id": 1, "location": 38, "file_name": "a.jpg"}
CAT = {"id": 5, "name": "cat"}
OF_CAT = {"image_id": 1, "category_id": 5}
ANNOTATIONS = {
    "a list": b"[1]",
    "null": b"null",
    "a number": b"5",
    "no JSON": b"{",
    "binary": b"\xff\xfe\x00",
    "100,000 levels": b"[" * 100_000,
    "no images": annotated(),
    "no keys": b'{"images": [{}], "annotations": [{}], "categories": [{}]}',
    "text for images": b'{"images": "x", "annotations": "y", "categories": "z"}',
    "an image that is absent": annotated(
        {**IMAGE, "file_name": "none.jpg"}, annotations=[OF_CAT], categories=[CAT]),
    "an image outside": annotated(
        {**IMAGE, "file_name": "../../../precious.txt"}, annotations=[OF_CAT], categories=[CAT]),
    "a location outside": annotated(
        {**IMAGE, "location": "../../x"}, annotations=[OF_CAT], categories=[CAT]),
    "a class outside": annotated(
        IMAGE, annotations=[OF_CAT], categories=[{"id": 5, "name": "../../x"}]),
    "a class without a name": annotated(IMAGE, annotations=[OF_CAT]),
    "a list as an id": annotated({**IMAGE, "id": [1]}, categories=[CAT]),
    "an image twice": annotated(
        IMAGE, {**IMAGE, "id": 2}, categories=[CAT],
        annotations=[OF_CAT, {**OF_CAT, "image_id": 2}]),
    "one location of four": annotated(IMAGE, annotations=[OF_CAT], categories=[CAT]),
}  # fmt: skip


@pytest.mark.parametrize("attack", ANNOTATIONS)
def test_hostile_annotations(attack, download, folder) -> None:
    """Of TerraIncognita, whose images are arranged by a JSON file in the archive."""
    files = (File("images.zip", ("http://x",)), File("annotations.zip", ("http://x",)))
    download.source(*files, key="terra_incognita")
    (folder / "images.zip").write_bytes(zipped({"images/a.jpg": b"pixels"}))
    (folder / "annotations.zip").write_bytes(zipped({"x/annotations.json": ANNOTATIONS[attack]}))
    download.is_refused(key="terra_incognita", say="is the content of the archives: ")
    assert (folder / "annotations.zip.refused").exists()


LISTS = {
    "a path upward": b"clipart/../../../precious.txt 0\n",
    "an absolute path": b"/etc/passwd 0\n",
    "another domain": b"real/a/0.png 0\n",
    "an image that is absent": b"clipart/none/0.png 0\n",
    "an image twice": b"clipart/a/0.png 0\nclipart/a/0.png 0\n",
    "binary": b"\xff\xfe\x00\x80 0\n",
    "a folder": b"clipart/a 0\n",
    "a NUL": b"clipart/a\x00/0.png 0\n",
    "no line": b"\n\n",
    "no label": b"clipart/a/0.png\n",
    "a web page": b"<html>\n<body>moved</body>\n",
    "a name of 5000 characters": b"clipart/" + b"a" * 5000 + b" 0\n",
}


@pytest.mark.parametrize("attack", LISTS)
def test_hostile_lists(attack, download, folder) -> None:
    """Of DomainNet, whose images are arranged by lists, which come without a checksum."""
    names = ("clipart.zip", "clipart_train.txt", "clipart_test.txt")
    download.source(*(File(n, ("http://x",)) for n in names), key="domain_net", holds=("clipart",))
    (folder / "clipart.zip").write_bytes(zipped({"clipart/a/0.png": b"x", "real/a/0.png": b"x"}))
    (folder / "clipart_train.txt").write_bytes(LISTS[attack])
    (folder / "clipart_test.txt").write_bytes(b"")
    download.is_refused(key="domain_net", say="is the content of the archives: ")
    assert (folder / "clipart_train.txt.refused").exists()


# ----------------------------------------------------------------------------- what lies there


def make(kind: str, path: Path) -> None:
    """Put something in the place of a file or folder of ours."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere/at/all")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"\xff\xfe\x00")


PLACES = [
    (place, kind)
    for place in (
        "set",
        "set.zip",
        "set.zip.sha256",
        "set.zip.part",
        "set.zip.refused",
        ".set.lock",
        ".set.unpacking",
    )
    for kind in ("pipe", "folder", "link to nothing", "link to itself", "device", "binary file")
]


@pytest.mark.parametrize(("place", "kind"), PLACES)
def test_something_else_lies_in_a_place_of_ours(place, kind, server, download, folder) -> None:
    """It is refused in one line, or replaced where it is one of our temporary files."""
    make(kind, folder / place)
    hostile_source(download, server, "/a")
    server.answers["/a/set.zip"] = says(reply(ZIP))
    status, _, err = download()
    if status == 0:
        assert (folder / "set" / "photo" / "dog" / "0.png").read_bytes() == b"photo"
    else:
        assert status == 2
        assert len(err.splitlines()) == 1
        assert err.startswith("fishr-data: download=")
    assert (folder / "precious.txt").read_text() == "mine"


def test_the_temporary_folder_is_a_link_to_another_one(server, download, folder, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "theirs.txt").write_text("theirs")
    (folder / ".set.unpacking").symlink_to(tmp_path / "other")
    hostile_source(download, server, "/a")
    server.answers["/a/set.zip"] = says(reply(ZIP))
    download.succeeds()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["theirs.txt"]


NOTES = {
    "a list": b"[1]",
    "a number": b"5",
    "null": b"null",
    "no JSON": b"{",
    "binary": b"\xff\xfe\x00",
    "100,000 levels": b"[" * 100_000,
    "a number as ETag": b'{"etag": 5, "modified": null, "size": 10}',
    "text as size": b'{"etag": null, "modified": null, "size": "x"}',
    "a negative size": b'{"etag": null, "modified": null, "size": -4}',
    "the size of what is there": b'{"etag": null, "modified": null, "size": 3}',
    "another key": b'{"etag": null, "modified": null, "size": 3, "more": 1}',
    "a list as modification time": b'{"etag": null, "modified": [1], "size": 3}',
    "a newline in the ETag": b'{"etag": "\\"a\\r\\nX: y\\"", "modified": null, "size": 99}',
}


@pytest.mark.parametrize("attack", NOTES)
def test_a_spoilt_note_of_a_transfer(attack, server, download, folder) -> None:
    """It is not trusted: the file is complete and right in the end, or refused by its checksum."""
    (folder / "set.zip.part").write_bytes(b"old")
    (folder / "set.zip.part.json").write_bytes(NOTES[attack])
    hostile_source(download, server, "/a", "/a")
    server.answers["/a/set.zip"] = says(reply(ZIP))
    download.succeeds()
    assert (folder / "set.zip").read_bytes() == ZIP


READY = {
    "domains that are files": lambda path: path.write_text("x"),
    "domains that are empty": lambda path: path.mkdir(),
    "domains that are pipes": os.mkfifo,
    "domains that are links to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("attack", READY)
def test_a_folder_that_is_not_ready(attack, download, folder) -> None:
    (folder / "set").mkdir()
    for domain in PACS:
        READY[attack](folder / "set" / domain)
    status, out, err = download()
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "exists, but lacks art_painting, cartoon, photo, sketch" in err
    assert "move it, or choose another folder" in err
    assert not (folder / ".set.lock").exists()
