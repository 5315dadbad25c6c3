"""Downloads one file over HTTP: tries mirrors in order, and resumes interrupted transfers.

    NAME.part         the bytes received so far
    NAME.part.json    identifies the file: ETag, modification time, size

A transfer is only resumed if the server's file is still the same according to these.
"""  # fmt: skip

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import require_file
from fishr_exp.core.secrets import masked
from fishr_exp.data.download.unpacking import require_space

_SILENCE = (10, 20, 40, 60, 60)  # seconds to wait for an answer, or more of it, of each attempt
_PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_PIECE = 1 << 18  # bytes
_PROGRESS = 1 << 18  # bytes; with fewer, an attempt counts as one without progress
_WINDOW, _LEAST = 60, 1 << 16  # seconds in which at least so many bytes must come
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # status codes that may be temporary
_LONGEST = 200  # characters of what a server says

Say = Callable[[str], None]


class _UnavailableError(Exception):
    """This address does not provide the file."""


def fetch(
    urls: Sequence[str], path: Path, refuse: Callable[[Path], str], unpacked: int, say: Say
) -> None:
    """Fetch a file from the first address that provides it.

    Args:
        urls: The addresses, tried in order.
        path: The path of the file.
        refuse: Returns why a downloaded file is not the expected one; empty if it is. A refused
            file is kept as NAME.refused, and the next address is tried.
        unpacked: Bytes that must stay free in addition to the file and its content.
        say: Receives progress messages; a server that does not answer is told after 10 seconds.

    Raises:
        ConfigError: If no address provides the file, or there is no space for it.
    """
    part, reasons = path.with_name(f"{path.name}.part"), []
    lack: ConfigError | None = None
    for url in urls:
        try:
            _receive(url, part, unpacked, say)
        except (_UnavailableError, ConfigError) as error:
            if isinstance(error, ConfigError):  # a server may state any size: try the others
                lack = error
            reasons.append(f"{url} ({error})")
            continue
        reason = refuse(part)
        part.replace(path.with_name(f"{path.name}.refused") if reason else path)
        _note(part).unlink(missing_ok=True)
        if not reason:
            return
        reasons.append(f"{url} ({reason}; kept as {path.name}.refused)")
    if lack is not None:
        raise lack
    raise ConfigError(
        "download", path.name, f"no address provided it: {', '.join(reasons)}",
        f"pass --mirror URL, or put the file into {path.parent} yourself and run the command again",
    )  # fmt: skip


def _receive(url: str, part: Path, unpacked: int, say: Say) -> None:
    if part.exists():
        require_file(part)
    failures, furthest = 0, _size(part)
    while True:
        try:
            reason = _resume(url, part, unpacked, _SILENCE[failures])
        except ConfigError:
            raise
        except (requests.TooManyRedirects, ValueError) as error:  # an address that cannot be
            raise _UnavailableError(_message(error)) from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            reason = f"no answer for {_SILENCE[failures]} seconds"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _message(error)
        if not reason:
            return
        # Only a new maximum is progress, so that a file that always changes fails, too.
        failures = 1 if _size(part) >= furthest + _PROGRESS else failures + 1
        furthest = max(furthest, _size(part))
        if failures == len(_SILENCE):
            raise _UnavailableError(reason)
        say(masked(f"{url}: {reason}; trying again"))
        time.sleep(_PAUSE * 2 ** (failures - 1))


def _resume(url: str, part: Path, unpacked: int, silence: float) -> str:
    """Request the missing bytes; return why the file is incomplete, or nothing."""
    known = _read_note(part)
    have = _size(part) if known else 0
    if known and have == known["size"]:
        return ""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        strong = known["etag"] if not (known["etag"] or "W/").startswith("W/") else None
        if validator := strong or known["modified"]:
            headers["If-Range"] = validator
    with requests.get(url, headers=headers, stream=True, timeout=silence) as response:
        status, stated = response.status_code, f"{response.status_code} {_plain(response.reason)}"
        if status in _BUSY:
            raise requests.HTTPError(stated)
        start, found = _described(response)
        if status in (206, 416) and not have:
            raise _UnavailableError(f"{stated}, but no part of the file was asked for")
        if status == 416 or (status == 206 and (start != have or _differ(known, found))):
            _discard(part)
            return "the file changes during the download, or the server cannot resume it"
        if status not in (200, 206):
            raise _UnavailableError(stated)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _UnavailableError("returned a web page, not the file")
        have = have if status == 206 else 0
        size = found["size"]
        name = part.name.removesuffix(".part")
        require_space(part.parent, name, 2 * (size or have) - have + unpacked)
        if not have:
            part.write_bytes(b"")
            _note(part).write_text(json.dumps(found))
        bar = tqdm(desc=name, initial=have, total=size, unit="B", unit_scale=True, leave=False,
                   disable=None)  # fmt: skip
        with part.open("ab") as file, bar:
            for piece in _pieces(response):
                have += len(piece)
                if size is None:
                    _require_space_of_endless(part, name, have + unpacked)
                elif have > size:
                    _discard(part)
                    raise _UnavailableError(f"sends more than the {size} bytes that it states")
                file.write(piece)
                bar.update(len(piece))
    if size is not None and have != size:
        return f"{have} of {size} bytes were received"
    if size is None:
        found["size"] = have
        _note(part).write_text(json.dumps(found))
    return ""


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it comes; refuse one that drips.

    Raises:
        requests.ConnectionError: If fewer than `_LEAST` bytes come in `_WINDOW` seconds.
    """
    since, came = time.monotonic(), 0
    while piece := response.raw.read1(_PIECE, decode_content=False):
        yield piece
        came += len(piece)
        if time.monotonic() > since + _WINDOW:
            if came < _LEAST:
                raise requests.ConnectionError(f"only {came} bytes came in {_WINDOW} seconds")
            since, came = time.monotonic(), 0


def _require_space_of_endless(part: Path, name: str, needed: int) -> None:
    """Refuse a file of unknown size whose content may not fit; it may never end."""
    try:
        require_space(part.parent, name, needed)
    except ConfigError:
        _discard(part)
        raise


def _described(response: requests.Response) -> tuple[int, dict]:
    """Return the offset of the body, and what identifies this version of the file."""
    headers = response.headers
    match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    size = match.group(2) if match else headers.get("Content-Length", "*")
    found = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified"),
             "size": int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None}  # fmt: skip
    return int(match.group(1)) if match else 0, found


def _differ(known: dict, found: dict) -> bool:
    return any(known[key] != found[key] for key in known if None not in (known[key], found[key]))


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict:
    """Return what identifies the file that `part` is a part of; nothing if that is unknown."""
    try:
        require_file(_note(part))
        known = json.loads(_note(part).read_text())
        text = {key: known.pop(key) for key in ("etag", "modified")}
        size = known.pop("size")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}
    texts = [value for value in text.values() if value is not None]
    right = all(isinstance(value, str) and value.isprintable() for value in texts)
    right = right and (size is None or isinstance(size, int)) and not known
    return {**text, "size": size} if right and part.exists() else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _message(error: Exception) -> str:
    """Return the innermost message of a network error."""
    text = str(error)
    inner = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return _plain(inner.group(1) if inner else text) or type(error).__name__


def _plain(text: str | None) -> str:
    """Return the first line of what a server says, without characters that control a terminal."""
    line = next(iter((text or "").splitlines()), "")[:_LONGEST]
    return "".join(character if character.isprintable() else "?" for character in line)
