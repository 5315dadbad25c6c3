"""Downloads one file over HTTP: tries mirrors in order, and resumes interrupted transfers.

    NAME.part         the bytes received so far
    NAME.part.json    identifies the file: ETag, modification time, size

A transfer is only resumed if the server's file is still the same according to these.
"""  # fmt: skip

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.download.unpacking import require_space

_TRIES = 5  # consecutive attempts without progress
_PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
_PIECE = 1 << 18  # bytes
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # status codes that may be temporary


class _UnavailableError(Exception):
    """This address does not provide the file."""


def fetch(urls: Sequence[str], path: Path, refuse: Callable[[Path], str], unpacked: int) -> None:
    """Fetch a file from the first address that provides it.

    Args:
        urls: The addresses, tried in order.
        path: The path of the file.
        refuse: Returns why a downloaded file is not the expected one; empty if it is. A refused
            file is kept as NAME.refused, and the next address is tried.
        unpacked: Bytes that must stay free in addition to the file and its content.

    Raises:
        ConfigError: If no address provides the file, or there is no space for it.
    """
    part, reasons = path.with_name(f"{path.name}.part"), []
    for url in urls:
        try:
            _receive(url, part, unpacked)
        except _UnavailableError as error:
            reasons.append(f"{url} ({error})")
            continue
        reason = refuse(part)
        part.replace(path.with_name(f"{path.name}.refused") if reason else path)
        _note(part).unlink()
        if not reason:
            return
        reasons.append(f"{url} ({reason}; kept as {path.name}.refused)")
    raise ConfigError(
        "download", path.name, f"no address provided it: {', '.join(reasons)}",
        f"pass --mirror URL, or put the file into {path.parent} yourself and run the command again",
    )  # fmt: skip


def _receive(url: str, part: Path, unpacked: int) -> None:
    failures, furthest, reason = 0, _size(part), ""
    while failures < _TRIES:
        if failures:
            time.sleep(_PAUSE * 2 ** (failures - 1))
        try:
            if _resume(url, part, unpacked):
                return
            reason = "the file changes during the download"
        except requests.exceptions.InvalidURL as error:
            raise _UnavailableError(_message(error)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _message(error)
        # Only a new maximum is progress, so that a file that always changes fails, too.
        failures = 1 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
    raise _UnavailableError(reason)


def _resume(url: str, part: Path, unpacked: int) -> bool:
    """Request the missing bytes; return whether the file is complete. False: start from scratch."""
    known = _read_note(part)
    have = _size(part) if known else 0
    if known and have == known["size"]:
        return True
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        strong = known["etag"] if not (known["etag"] or "W/").startswith("W/") else None
        if validator := strong or known["modified"]:
            headers["If-Range"] = validator
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        status = response.status_code
        if status in _BUSY:
            raise requests.HTTPError(f"{status} {response.reason}")
        start, found = _described(response)
        if status == 416 or (status == 206 and (start != have or _differ(known, found))):
            part.unlink()
            return False
        if status not in (200, 206):
            raise _UnavailableError(f"{status} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _UnavailableError("returned a web page, not the file")
        if status == 200:
            have = 0
            part.write_bytes(b"")
            _note(part).write_text(json.dumps(found))
        size = found["size"]
        if size is not None:
            require_space(part.parent, part.name.removesuffix(".part"), 2 * size - have + unpacked)
        bar = tqdm(desc=part.name.removesuffix(".part"), initial=have, total=size, unit="B",
                   unit_scale=True, leave=False, disable=None)  # fmt: skip
        with part.open("ab") as file, bar:
            for piece in response.raw.stream(_PIECE, decode_content=False):
                file.write(piece)
                bar.update(len(piece))
    if size is not None and _size(part) != size:
        raise requests.ConnectionError(f"{_size(part)} of {size} bytes were received")
    if size is None:
        found["size"] = _size(part)
        _note(part).write_text(json.dumps(found))
    return True


def _described(response: requests.Response) -> tuple[int, dict]:
    """Return the offset of the body, and what identifies this version of the file."""
    headers = response.headers
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    size = match.group(2) if match else headers.get("Content-Length", "*")
    found = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified"),
             "size": int(size) if size.isdecimal() else None}  # fmt: skip
    return int(match.group(1)) if match else 0, found


def _differ(known: dict, found: dict) -> bool:
    return any(known[key] != found[key] for key in known if None not in (known[key], found[key]))


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict:
    try:
        known = json.loads(_note(part).read_text())
    except (OSError, ValueError):
        return {}
    return known if part.exists() and set(known) == {"etag", "modified", "size"} else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _message(error: Exception) -> str:
    """Return the innermost message of a network error."""
    text = str(error)
    inner = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return inner.group(1) if inner else (text.splitlines() or [type(error).__name__])[0]
