"""Passwords and tokens: masked wherever something is written, sent or shown.

`masked` is used at the doors: what writes JSON and YAML, formats log lines, prints, and sends to a
tracker. The command itself works with the real values.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any
from urllib.parse import unquote

MASK = "***"

# The ends of names of what is secret: of keys, parts of a query, and variables.
_SECRET = r"(?:password|passwd|_pwd|secret|token|api_?key|access_?key|signature|credential)"
_NAME = re.compile(rf"[\w.-]*{_SECRET}", re.IGNORECASE)
_VARIABLE = re.compile(
    r"(?:PASSWORD|PASSWD|_PWD|TOKEN|SECRET|API_?KEY|ACCESS_?KEY)$", re.IGNORECASE
)
_INTERPOLATION = re.compile(r"\$\{[\w.:]+\}")  # names a secret without holding one

# Hydra writes the words of a sweep's jobs with a backslash before each colon and equals sign.
_HTTP = r"https?\\?://"
# The user and password of an address, until the last @. By the standard they end before the first
# slash; what follows a colon and is not a port is a password that was not quoted.
_OF_HTTP = re.compile(
    rf"(?P<scheme>{_HTTP})(?P<user>[^\s/?#]*|[^\s/?#@:]*:(?!\d*[/?#])\S*)@", re.IGNORECASE
)
_OF_OTHERS = re.compile(
    rf"(?P<scheme>(?!{_HTTP})\b[a-z][a-z0-9+.-]*\\?://)(?P<user>[^\s:/@]*):(?P<password>\S*)@",
    re.IGNORECASE,
)
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|(?:[^&\s,;:#'\"\])}]|:(?!\s))+)"
_GIVEN = re.compile(rf"(?P<name>\b[\w.-]{{0,60}}{_SECRET}\\?=)(?P<value>{_VALUE})", re.IGNORECASE)
_IN_MAPPING = re.compile(
    rf"(?P<name>[{{,]\s*['\"]?[\w.-]{{0,60}}{_SECRET}['\"]?\s*\\?:\s*)(?P<value>{_VALUE})",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)(?P<value>[^\s'\",}]+)",
    re.IGNORECASE,
)
_IN_QUERY = re.compile(rf"(?<=[?&])[\w.-]*{_SECRET}=[^&#]*&?", re.IGNORECASE)

_remembered: set[str] = set()


def masked(text: str) -> str:
    """Replace passwords and tokens in a text by `***`.

    Those of addresses (`https://***@HOST`, `postgresql://USER:***@HOST`), values of names that end
    in `password`, `token`, `secret`, `api_key` and the like, and, wherever they stand, the values
    of environment variables of such names and what `remember` was given.
    """
    if "//" in text:
        text = _OF_HTTP.sub(_without_user, text)
        text = _OF_OTHERS.sub(_without_password, text)
    if "=" in text or ":" in text:
        for pattern in (_GIVEN, _IN_MAPPING, _HEADER):
            text = pattern.sub(_without_value, text)
    for secret in _known():
        if secret in text:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", MASK, text)
    return text


def masked_value(key: str, value: Any) -> Any:
    """Return a setting as it may be shown: text is `masked`, also inside lists and mappings.

    Args:
        key: Its name. Where that says that the value is secret, all of it is masked.
        value: A plain value.
    """
    if isinstance(value, str):
        secret = value and _NAME.fullmatch(key) and not _INTERPOLATION.fullmatch(value)
        return MASK if secret else masked(value)
    if isinstance(value, dict):
        return {name: masked_value(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_value("", item) for item in value]
    return value


def bare(address: str) -> str:
    """Return an address without its passwords and tokens, for a record that is used again.

    `https://HOST`, `postgresql://USER@HOST`: the password then comes from where the library of the
    server looks for it.
    """
    scheme, separator, rest = address.partition("://")
    user, at, _ = rest.rpartition("@")
    http = scheme.lower() in ("http", "https")
    pattern = _OF_HTTP if http else _OF_OTHERS
    if at and pattern.match(f"{scheme}://{user.replace(' ', '_')}@"):
        kept = "" if http else f"{user.partition(':')[0]}@"
        address = f"{scheme}{separator}{kept}{rest[len(user) + 1 :]}"
    return _IN_QUERY.sub("", address).rstrip("?&") if "?" in address else address


def remember(address: str) -> None:
    """Have the password in an address masked wherever it stands, also without the address.

    Libraries name parts of an address in their errors. Passwords that are ordinary words are only
    masked inside an address: they are part of other names.
    """
    _, separator, rest = address.partition("://")
    if not separator or "${" in address:  # a variable, which is known by its name
        return
    user, _, password = rest.rpartition("@")[0].partition(":")
    found = [found["value"] for found in _GIVEN.finditer(address)]
    found += [password or user] if password != user else []
    for secret in [*found, *map(unquote, found)]:
        for text in (secret, *re.split(r"[/@:?#&]", secret)):
            if len(text) >= (12 if text.islower() and text.isalpha() else 6):
                _remembered.add(text)


def _known() -> list[str]:
    """Return the secrets that are known by themselves, the longest first."""
    found = set(_remembered)
    for name in os.environ:  # for each text that is written: values are read of few
        if _is_secret(name) and (value := os.environ.get(name, "")):
            is_word = value.islower() and value.replace("_", "").isalpha()  # part of other names
            if len(value) >= (16 if is_word else 8) and value[0] != "/":
                found.add(value)
    return sorted(found, key=len, reverse=True)


@functools.lru_cache(maxsize=1000)
def _is_secret(variable: str) -> bool:
    return _VARIABLE.search(variable) is not None


def _without_user(found: re.Match[str]) -> str:
    user = found["user"].removesuffix(":")
    keep = not user or re.search(rf"(?:^|:){_INTERPOLATION.pattern}$", user)
    return found[0] if keep else f"{found['scheme']}{MASK}@"


def _without_password(found: re.Match[str]) -> str:
    if not found["password"] or _INTERPOLATION.fullmatch(found["password"]):
        return found[0]
    return f"{found['scheme']}{found['user']}:{MASK}@"


def _without_value(found: re.Match[str]) -> str:
    plain = found["value"].lower() in ("true", "false", "null")  # of a key such as class_token
    return found[0] if plain or found["value"].startswith("${") else f"{found['name']}{MASK}"
