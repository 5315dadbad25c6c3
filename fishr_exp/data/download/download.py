"""Downloads a benchmark: fetch its files, compare checksums, unpack, arrange folders."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import require_file
from fishr_exp.core.secrets import remember
from fishr_exp.data.download.sources import SOURCES, UNTESTED, File, Source
from fishr_exp.data.download.transfer import Say, fetch
from fishr_exp.data.download.unpacking import (
    ARRANGED_BY,
    OF_THE_CONTENT,
    RefusedError,
    arrange,
    other_content,
    require_space,
    unpack,
)

_CHUNK = 1 << 22  # bytes to digest at a time


def download(name: str, folder: Path, mirrors: Sequence[str], say: Say) -> Path:
    """Download a dataset; files that exist are neither fetched nor unpacked again.

    An archive with the expected name in `folder` is used, wherever it is from. It is kept, and its
    SHA-256 is written next to it, to compare later downloads with. One that is refused is renamed
    to NAME.refused.

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
    for mirror in mirrors:
        remember(mirror)  # libraries name parts of an address in their errors
    target = folder / source.folder
    try:
        if _is_ready(target, source, say):
            return target
        _refuse_by_hand(source, folder, mirrors)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{key}.lock"):  # another process may be downloading it
            if _is_ready(target, source, say):
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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, whose file is removed at the end."""
    with FileLock(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove a file that is open
                path.unlink()


def _is_ready(target: Path, source: Source, say: Say) -> bool:
    """Whether the dataset exists: its folder is renamed to this when it is complete."""
    if not target.exists():
        return False
    if missing := _missing(target, source):
        raise ConfigError(
            "download", str(target), f"exists, but lacks {missing}",
            "move it, or choose another folder",
        )  # fmt: skip
    say(f"{target} exists: nothing to do")
    return True


def _missing(folder: Path, source: Source) -> str:
    """Name what a dataset's folder lacks: folders of domains that are not empty, or files."""

    def is_there(path: Path) -> bool:
        return path.is_dir() and any(path.iterdir()) if source.below else path.is_file()

    absent = [name for name in source.holds if not is_there(folder / name)]
    there = [name for name in absent if (folder / name).exists()]
    kind = "a folder with content" if source.below else "a file"
    return ", ".join(absent) + (f" ({', '.join(there)}: not {kind})" if there else "")


def _refuse_by_hand(source: Source, folder: Path, mirrors: Sequence[str]) -> None:
    """Refuse, before anything is made, a dataset whose files are absent and have no address."""
    for file in source.files:
        if not (mirrors or file.urls or (folder / file.name).exists()):
            raise ConfigError(
                "download", source.datasets[0], source.by_hand,
                f"put {file.name} into {folder} and run the command again, or unpack it yourself "
                f"as {layout(source, folder / source.folder)}, or pass --mirror URL",
            )  # fmt: skip


def _obtain(
    source: Source, folder: Path, mirrors: Sequence[str], say: Say, file: File, unpacked: int
) -> int:
    """Fetch a file into `folder` if it is missing, and check it; return its size in bytes."""
    path = folder / file.name
    urls = [f"{mirror.rstrip('/')}/{file.name}" for mirror in mirrors] + list(file.urls)
    compare = functools.partial(_problem_with, source, file, path, say)
    if path.exists():
        require_file(path)
        if reason := compare(path):
            hint = "run the command again, with the right file or to download it"
            if path.with_name(_kept(path).name).exists():
                hint += f"; if this one is right, rename it back and remove {_kept(path).name}"
            _set_aside(path)
            raise ConfigError("download", str(path), f"{reason}; {_renamed([path])}", hint)
    else:
        fetch(urls, path, compare, unpacked, say)
    return path.stat().st_size


def _set_aside(archive: Path) -> None:
    """Rename a refused archive, so that it is not taken for a good one."""
    archive.replace(archive.with_name(f"{archive.name}.refused"))


def _renamed(archives: Sequence[Path]) -> str:
    return f"now called {', '.join(f'{path.name}.refused' for path in archives)}"


def _problem_with(source: Source, file: File, path: Path, say: Say, came: Path) -> str:
    """Return why a downloaded file is not the expected one; store the SHA-256 of one that is."""
    md5, sha256 = _digests(came)
    if file.md5 and md5 != file.md5 and not source.by_hand:
        return f"its MD5 is {md5}, not {file.md5} as stated by {file.md5_source}"
    kept = _kept(path)
    if kept.exists():
        require_file(kept)
        before = kept.read_text(errors="replace").split(" ")[0][:64]
        if before != sha256:
            return f"its SHA-256 is {sha256}, not {before!r} as in {kept.name}"
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
    if work.is_symlink() or not work.is_dir():  # a link would lead out of the folder
        work.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)  # of a killed process
    unpacked, arranged = work / "unpacked", work / "arranged"
    suspects = archives
    try:
        for new in (unpacked, arranged):
            new.mkdir(parents=True)
        for path in archives:
            suspects = [path]
            unpack(path, unpacked)
        suspects = [path for path in archives if not _is_published(path, source)]
        _arrange(key, source, unpacked, arranged)
        arranged.rename(target)
    except ConfigError as error:
        refused = isinstance(error, RefusedError)
        for path in suspects:
            _kept(path).unlink(missing_ok=True)  # do not compare others with it
            if refused:
                _set_aside(path)
        if refused and suspects:
            error.allowed = f"{error.allowed}; {_renamed(suspects)}"
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_published(archive: Path, source: Source) -> bool:
    (file,) = [file for file in source.files if file.name == archive.name]
    return bool(file.md5) and _digests(archive)[0] == file.md5


def _arrange(key: str, source: Source, unpacked: Path, arranged: Path) -> None:
    """Arrange what was unpacked; whatever goes wrong is due to its content, except a full disk.

    Raises:
        RefusedError: If the content is not the dataset's.
        OSError: If the disk is full, or does not work.
    """
    try:
        ARRANGED_BY.get(key, arrange)(unpacked, source.holds, arranged)
    except ConfigError:
        raise
    except Exception as error:
        of_the_disk = isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG
        if of_the_disk and not isinstance(error, OF_THE_CONTENT):
            raise
        said = f"{type(error).__name__}: {error}"
        raise other_content(unpacked, f"it cannot be arranged ({said})") from error
    if missing := _missing(arranged, source):
        raise other_content(unpacked, f"it lacks {missing}")
