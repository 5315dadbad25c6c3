"""Downloads a benchmark: fetch its files, compare checksums, unpack, arrange folders."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.download.sources import SOURCES, UNTESTED, File, Source
from fishr_exp.data.download.transfer import fetch
from fishr_exp.data.download.unpacking import ARRANGED_BY, arrange, require_space, unpack

Say = Callable[[str], None]
_CHUNK = 1 << 22  # bytes to digest at a time


def download(name: str, folder: Path, mirrors: Sequence[str], say: Say) -> Path:
    """Download a dataset; files that exist are neither fetched nor unpacked again.

    An archive with the expected name in `folder` is used, wherever it is from. It is kept, and its
    SHA-256 is written next to it, to compare later downloads with.

    Args:
        name: Of the dataset: a key of `SOURCES`, or an option of the group dataset.
        folder: The folder for the archives and for the folder of the dataset.
        mirrors: URLs of folders that are tried before the public addresses.
        say: Receives progress messages, one line at a time.

    Returns:
        The folder of the dataset.

    Raises:
        ConfigError: If the dataset is unknown, must be downloaded manually, cannot be fetched or
            unpacked, has a different checksum, or does not fit on the disk.
    """
    key, source = find(name)
    if wrong := [url for url in mirrors if not url.startswith(("http://", "https://"))]:
        raise ConfigError("--mirror", wrong[0], "must begin with http:// or https://")
    target = folder / source.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):  # another process may be downloading it
            if _is_ready(target, source):
                say(f"{target} exists: nothing to do")
                return target
            say(f"{source.title}, terms: {source.terms}")
            if not source.by_hand:
                say(UNTESTED)
            obtain = functools.partial(_obtain, source, folder, mirrors, say)
            sizes: list[int] = []  # of the archives, whose content must fit on the disk
            for file in source.files:
                sizes.append(obtain(file, sum(sizes)))
            _unpack(key, source, folder, target)
    except OSError as error:
        reason = f"{error.filename or folder} cannot be used ({error.strerror or error})"
        raise ConfigError("download", name, reason, "choose another folder") from error
    first = source.files[0].name
    more = f" and {len(source.files) - 1} more files" if len(source.files) > 1 else ""
    say(f"{target} is ready; {first}{more} in {folder} may be removed")
    if source.note:
        say(source.note)
    return target


def find(name: str) -> tuple[str, Source]:
    """Return the key and the source of a dataset.

    Args:
        name: A key of `SOURCES`, or an option of the group dataset.

    Raises:
        ConfigError: If the dataset is unknown.
    """
    for key, source in SOURCES.items():
        if name == key or name in source.datasets:
            return key, source
    allowed = f"no source is known; choose from {', '.join(SOURCES)}"
    raise ConfigError("download", name, allowed)


def layout(source: Source, target: Path) -> str:
    """Return the expected layout of the folder of a dataset."""
    return "/".join([str(target), f"{{{','.join(source.holds)}}}", *filter(None, [source.below])])


def _is_ready(target: Path, source: Source) -> bool:
    """Whether the dataset exists: its folder is renamed to this when it is complete."""
    if not target.exists():
        return False
    if missing := [name for name in source.holds if not (target / name).exists()]:
        raise ConfigError(
            "download", str(target), f"exists, but lacks {', '.join(missing)}",
            "move it, or choose another folder",
        )  # fmt: skip
    return True


def _obtain(
    source: Source, folder: Path, mirrors: Sequence[str], say: Say, file: File, unpacked: int
) -> int:
    """Fetch a file into `folder` if it is missing, and check it; return its size in bytes."""
    path = folder / file.name
    urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors] + list(file.urls)
    compare = functools.partial(_problem_with, source, file, path, say)
    if path.exists():
        if reason := compare(path):
            hint = "remove it, or the file that it is compared with, and run the command again"
            raise ConfigError("download", str(path), reason, hint)
    elif urls:
        fetch(urls, path, compare, unpacked)
    else:
        raise ConfigError(
            "download", source.datasets[0], source.by_hand,
            f"put {file.name} into {folder} and run the command again, or unpack it yourself as "
            f"{layout(source, folder / source.folder)}, or pass --mirror URL",
        )  # fmt: skip
    return path.stat().st_size


def _problem_with(source: Source, file: File, path: Path, say: Say, came: Path) -> str:
    """Return why a downloaded file is not the expected one; store the SHA-256 of one that is."""
    md5, sha256 = _digests(came)
    if file.md5 and md5 != file.md5 and not source.by_hand:
        return f"its MD5 is {md5}, not {file.md5} as stated by {file.md5_source}"
    kept = _kept(path)
    if kept.exists():
        before = kept.read_text().split(" ")[0]
        if before != sha256:
            return f"its SHA-256 is {sha256}, not {before} as in {kept.name}"
        return ""
    kept.write_text(f"{sha256}  {path.name}\n")  # in the format of sha256sum
    if not file.md5:
        known = "no published checksum is known"
    elif md5 == file.md5:
        known = f"its MD5 is the one stated by {file.md5_source}"
    else:
        known = f"packed differently from the archive with MD5 {file.md5} of {file.md5_source}"
    say(f"{file.name}: SHA-256 {sha256}; {known}")
    return ""


def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digests(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    size = path.stat().st_size
    bar = tqdm(desc=f"comparing {path.name}", total=size, unit="B", unit_scale=True, leave=False,
               disable=None)  # fmt: skip
    with path.open("rb") as file, bar:
        while piece := file.read(_CHUNK):
            md5.update(piece)
            sha256.update(piece)
            bar.update(len(piece))
    return md5.hexdigest(), sha256.hexdigest()


def _unpack(key: str, source: Source, folder: Path, target: Path) -> None:
    """Unpack into a temporary folder, and rename it when it is complete."""
    archives = [folder / file.name for file in source.files]
    require_space(folder, source.title, sum(path.stat().st_size for path in archives))
    work = folder / f".{key}.unpacking"
    shutil.rmtree(work, ignore_errors=True)  # of a killed process
    unpacked, arranged = work / "unpacked", work / "arranged"
    try:
        for new in (unpacked, arranged):
            new.mkdir(parents=True)
        for path in archives:
            try:
                unpack(path, unpacked)
            except ConfigError:  # not an archive: do not compare others with it
                _kept(path).unlink(missing_ok=True)
                raise
        ARRANGED_BY.get(key, arrange)(unpacked, source.holds, arranged)
        arranged.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
