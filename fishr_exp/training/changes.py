"""Whether the data on disk are still those of a run that is done."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.digests import changes, digests
from fishr_exp.runs.identity import TARGET
from fishr_exp.training.arguments import Arguments

_known_data: dict[str, dict[str, str]] = {}  # by the settings of a dataset, what it is on disk


def changes_since(there: Mapping[str, str] | None, arguments: Arguments) -> str:
    """Say how the data on disk differ from those of a run that is done, where that is cheap."""
    dataset = arguments.config["dataset"]
    ours = str(dataset[TARGET]).startswith("fishr_exp.") and "cache" in dataset
    if not there or not ours or dataset.get("on_bad_image") == "skip":
        return ""  # not images in files; or all of them would be read
    here = _known_data.get(str(dataset))  # of a run before this one, in a sweep
    if here is None:
        with contextlib.suppress(ConfigError):  # they need not be there any more
            here = digests(arguments.dataset(cache=None).by_name)  # type: ignore[call-arg]
    _known_data[str(dataset)] = here or {}
    return changes(there, here) if here else ""
