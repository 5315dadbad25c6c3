"""Unpacks the benchmarks' archives and arranges them as `folder/domain/class/image`."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from fishr_exp.core.errors import ConfigError

_T = TypeVar("_T")
_TERRA_CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit",
                  "raccoon", "squirrel")  # fmt: skip
# JiGen's copy of VLCS: different names, numbered classes, and parts of which two are everything.
_JIGEN_DOMAINS = {
    "CALTECH": "Caltech101",
    "LABELME": "LabelMe",
    "SUN": "SUN09",
    "PASCAL": "VOC2007",
}
_JIGEN_CLASSES = ("bird", "car", "chair", "dog", "person")
_JIGEN_PARTS = ("full", "test")
_PIECE = 1 << 20  # bytes of an unpacked file at a time
_SHOWN = 300  # characters of what others wrote
_LONGEST_HEADER = 1 << 20  # bytes of an extended header in a tar, which is read into memory
_MOST_PACKED = 1032  # bytes in one, at most
_DEEPEST = 64  # folders, one in another


def require_space(folder: Path, what: str, needed: int) -> None:
    """Refuse data that will not fit on the disk.

    Args:
        folder: The destination.
        what: Its name.
        needed: Its size in bytes.

    Raises:
        ConfigError: If less space is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{what} and its content need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
        raise ConfigError(
            "download", str(folder), reason, "free some space, or choose another folder"
        )


class RefusedError(ConfigError):
    """The content of an archive is damaged, dangerous, or not what was expected."""


def unpack(archive: Path, into: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .gz file; copy any other.

    Args:
        archive: The file.
        into: An existing folder. Nothing is written outside of it, and no link into it.

    Raises:
        RefusedError: If the archive is damaged, or has links or paths outside the folder.
        ConfigError: If it does not fit, is encrypted or compressed in an unknown way.
    """
    is_tar = archive.name.endswith((".tar", ".tar.gz", ".tgz"))
    if is_tar and not hasattr(tarfile, "data_filter"):
        reason = "this Python cannot unpack it safely (3.10.12, 3.11.4 and later can)"
        raise ConfigError("download", archive, reason, "unpack it yourself")
    try:
        if is_tar:
            _unpack_tar(archive, into)
        elif archive.name.endswith(".zip"):
            _unpack_zip(archive, into)
        elif archive.name.endswith(".gz"):
            _unpack_gz(archive, into / archive.stem)
        else:
            shutil.copy(archive, into)
    except ConfigError:
        raise
    except tarfile.FilterError as error:
        special = isinstance(error, tarfile.SpecialFileError)
        kind = "neither a file nor a folder" if special else "outside the folder"
        raise _unsafe(archive, error.tarinfo.name, kind) from error
    except RecursionError as error:
        raise _damaged(archive, error) from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unsupported compression
        reason = f"it cannot be unpacked here ({error})"
        raise ConfigError("download", archive, reason, "unpack it yourself") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL) or isinstance(error, OF_THE_CONTENT):
            raise _damaged(archive, error) from error
        reason = f"it cannot be unpacked ({error.strerror})"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = (
            "free some space, and run the command again"
            if full
            else "choose another folder, and run the command again"
        )
        raise ConfigError("download", archive, reason, hint) from error
    except Exception as error:  # a damaged archive raises almost anything
        raise _damaged(archive, error) from error


# In an empty folder of our own, these come from what an archive holds.
OF_THE_CONTENT = (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


_EXTENDED = (  # headers that describe the next member, in any length
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Member(tarfile.TarInfo):
    """A member of a tar; a header whose size is negative or absurd is not read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _EXTENDED and member.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header states {member.size} bytes")
        return member


def _unpack_tar(archive: Path, into: Path) -> None:
    with tarfile.open(archive, tarinfo=_Member) as tar:
        for member in _bar(tar, archive):
            if member.size < 0:  # by a record of an extended header
                raise tarfile.ReadError(f"{member.name} states {member.size} bytes")
            if member.issym():  # it may lead elsewhere once it is moved
                raise _unsafe(archive, member.name, "a link")
            _check_depth(archive, member.name)
            require_space(archive.parent, archive.name, member.size)
            tar.extract(member, into, filter="data")


def _unpack_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        # No more comes out: zipfile stops at the stated size.
        require_space(archive.parent, archive.name, sum(info.file_size for info in members))
        for info in _bar(members, archive):
            if not (into / info.filename).resolve().is_relative_to(into.resolve()):
                raise _unsafe(archive, info.filename)
            _check_depth(archive, info.filename)
            packed.extract(info, into)


def _unpack_gz(archive: Path, target: Path) -> None:
    """Unpack one file, which states its size in its last four bytes."""
    with archive.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        stated = int.from_bytes(file.read(), "little")
    if stated > _MOST_PACKED * size:
        raise EOFError("it cannot contain what it states")
    require_space(archive.parent, archive.name, stated)
    with gzip.open(archive) as packed, target.open("wb") as file:
        while piece := packed.read(_PIECE):
            if file.tell() + len(piece) > stated:
                raise EOFError(f"it has more than the {stated} bytes that it states")
            file.write(piece)


def _check_depth(archive: Path, name: str) -> None:
    if name.count("/") > _DEEPEST:
        raise _unsafe(archive, f"{name[:40]}...", f"more than {_DEEPEST} folders deep")


def arrange(unpacked: Path, holds: Sequence[str], into: Path) -> None:
    """Move the required entries from wherever they are in the archive.

    Args:
        unpacked: The archive's content.
        holds: Paths of folders or files with a common parent.
        into: The destination.

    Raises:
        ConfigError: If they are missing.
    """
    place = _common_parent(unpacked, holds)
    if place is None:
        raise other_content(unpacked, f"no folder with {', '.join(holds)}")
    for name in holds:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).rename(into / name)


def mnist(unpacked: Path, holds: Sequence[str], into: Path) -> None:
    """Put MNIST's four files into `raw`; the arguments are those of `arrange`."""
    (into / "raw").mkdir(parents=True)
    arrange(unpacked, [Path(name).name for name in holds], into / "raw")


def vlcs(unpacked: Path, holds: Sequence[str], into: Path) -> None:
    """Arrange VLCS as DomainBed packed it, or as JiGen's authors did; see `arrange`.

    In JiGen's, `full` contains the images of `train` and `crossval`, and `test` the rest.
    """
    place = _common_parent(unpacked, list(_JIGEN_DOMAINS))
    if place is None:
        arrange(unpacked, holds, into)
        return
    for theirs, domain in _JIGEN_DOMAINS.items():
        for number, name in enumerate(_JIGEN_CLASSES):
            (into / domain / name).mkdir(parents=True)
            for part in _JIGEN_PARTS:
                for image in sorted((place / theirs / part / str(number)).iterdir()):
                    image.rename(into / domain / name / f"{part}_{image.name}")


def domain_net(unpacked: Path, holds: Sequence[str], into: Path) -> None:
    """Arrange DomainNet by its authors' lists, which leave duplicates out; see `arrange`."""
    for domain in holds:
        lists = [unpacked / f"{domain}_{part}.txt" for part in ("train", "test")]
        for line in _lines(lists):
            path = line.rpartition(" ")[0]
            if path.split("/")[0] != domain or ".." in path.split("/"):
                raise other_content(unpacked, f"{path} in the list of {domain}")
            if not (unpacked / path).is_file():
                raise other_content(unpacked, f"no {path}, which the list of {domain} names")
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / path).rename(into / path)


def terra_incognita(unpacked: Path, holds: Sequence[str], into: Path) -> None:
    """Arrange TerraIncognita by its annotations, ten classes as in DomainBed; see `arrange`.

    An image with animals of two classes is in both, as in DomainBed.
    """
    names: dict[object, str] = {}
    classes: dict[str, list[object]] = defaultdict(list)
    images: dict[str, dict] = {}
    for file in sorted(unpacked.rglob("*.json")):
        content = json.loads(file.read_text())
        names |= {one["id"]: one["name"] for one in content["categories"]}
        for one in content["annotations"]:
            classes[one["image_id"]].append(one["category_id"])
        images |= {one["id"]: one for one in content["images"]}
    if not images:
        raise other_content(unpacked, "no annotations in JSON")
    paths = {path.name: path for path in unpacked.rglob("*") if path.suffix.lower() == ".jpg"}
    for key, image in images.items():
        domain, name = f"location_{image['location']}", Path(image["file_name"]).name
        wanted = {names[number] for number in classes[key]}.intersection(_TERRA_CLASSES)
        if domain not in holds or not wanted:
            continue
        if name not in paths:
            raise other_content(unpacked, f"no {name}, which is annotated")
        for label in sorted(wanted):
            (into / domain / label).mkdir(parents=True, exist_ok=True)
            os.link(paths[name], into / domain / label / name)


ARRANGED_BY = {
    "domain_net": domain_net,
    "mnist": mnist,
    "terra_incognita": terra_incognita,
    "vlcs": vlcs,
}
"""Functions for the datasets whose archives have a different layout."""


def _common_parent(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the uppermost folder under `folder`, or itself, that has all these entries."""
    level = [folder]
    while level:
        for place in level:
            if all((place / name).exists() for name in names):
                return place
        inner = [path for place in level for path in sorted(place.iterdir()) if path.is_dir()]
        level = [path for path in inner if not path.name.startswith((".", "__MACOSX"))]
    return None


def _lines(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield from (line for line in file.read_text().splitlines() if line.strip())


def _bar(members: Iterable[_T], archive: Path) -> Iterable[_T]:
    return tqdm(members, f"unpacking {archive.name}", unit=" files", leave=False, disable=None)


def _unsafe(archive: Path, member: str, what: str = "outside the folder") -> RefusedError:
    reason = f"its member {member} is {what}"
    return RefusedError(
        "download", archive, reason, "do not trust it: download it from another source"
    )


def _damaged(archive: Path, error: Exception) -> RefusedError:
    said = str(error)
    expected = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError)
    if not isinstance(error, expected):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return RefusedError(
        "download",
        archive,
        f"it is damaged ({said})",
        "run the command again, with another copy or to download it",
    )


def other_content(unpacked: Path, lacks: str) -> RefusedError:
    """Return the error of archives that do not contain their dataset.

    Args:
        unpacked: What they contain.
        lacks: What is wrong with it.
    """
    there = ", ".join(sorted(path.name for path in unpacked.iterdir())[:5]) or "nothing"
    lacks = lacks if len(lacks) <= _SHOWN else f"{lacks[:_SHOWN]}..."
    return RefusedError(
        "download", there, f"is the content of the archives: {lacks}",
        "unpack them yourself in the layout that fishr-data list shows",
    )  # fmt: skip
