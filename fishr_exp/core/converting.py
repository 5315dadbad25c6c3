"""Values of the configuration as the annotations of a signature want them."""

from __future__ import annotations

import difflib
import functools
import typing
from typing import TYPE_CHECKING, Any

from fishr_exp.core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# How types are called to people.
_PLAIN = {
    "float | torch.Tensor": "float",
    "torch.Tensor": "Tensor",
    "Mapping[str, Sequence[str]]": "{NAME:[WORD,...],...}",
    "Mapping[str, Mapping[str, Any]]": "{NAME:{KEY:VALUE,...},...}",
    "str | Mapping[str, Mapping[str, Any] | None]": "WORD or {NAME:{KEY:VALUE,...}}",
    "Mapping[str, Sequence[str] | str]": "{NAME:WORD, OTHER:[WORD,...],...}",
    "Sequence[str]": "[WORD,...]",
    "int | Mapping[str, int | None] | None": "a number, null or {DOMAIN:NUMBER,...}",
    **{
        written: f"true, false or {word}"
        for word in ("only", "all")
        for written in (f"Union[bool, Literal['{word}']]", f"bool | Literal['{word}']")
    },
}


def convert(key: str, value: object, annotation: Any) -> Any:
    """Return `value` as the annotation wants it; a number may be written as its text.

    Raises:
        ConfigError: If it cannot be.
    """
    from pydantic import ValidationError

    kinds = (annotation, *typing.get_args(annotation))
    if isinstance(value, bool) and bool not in kinds and Any not in kinds:
        value = str(value).lower()  # else pydantic takes true for 1
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        if typing.get_origin(annotation) is typing.Literal:
            words = [str(word) for word in typing.get_args(annotation)]
            near = difflib.get_close_matches(str(value), words, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise ConfigError(key, value, f"choose from {', '.join(words)}", hint) from None
        wanted = getattr(annotation, "__name__", None)
        if wanted is None or typing.get_args(annotation):
            wanted = str(annotation).replace("typing.", "").replace("collections.abc.", "")
            for python, plain in _PLAIN.items():
                wanted = wanted.replace(python, plain)
        reason = error.errors()[0]["msg"]
        one = wanted.startswith("list") and isinstance(value, str | int)
        hint = f"write {key}=[{str(value).strip('[]')}]" if one else ""
        raise ConfigError(
            key, value, f"must be {wanted.replace('None', 'null')} ({reason})", hint
        ) from None


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return what converts to an annotation; those of equal ones are made once."""
    try:
        return _kept_adapter(repr(annotation), annotation)
    except TypeError:  # it cannot be hashed
        return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    lenient = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    return TypeAdapter(annotation, config=lenient)


@functools.lru_cache(maxsize=256)
def _kept_adapter(spelled: str, annotation: Any) -> TypeAdapter[Any]:
    del spelled  # `int | float` equals `float | int`, whose messages are others
    return _new_adapter(annotation)
