"""The place of a run in a folder of many runs, which a file of a tracker's own marks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

from fishr_exp.runs.content import read_object
from fishr_exp.runs.files import to_json
from fishr_exp.runs.run_folder import RunFolder

IDENTITY = "identity"


def place_of_run(
    folder: RunFolder,
    identity: str,
    marker: Callable[[str], Path],
    occupied: Callable[[str], bool],
    known: str = "",
) -> str:
    """Return the name of a run's place, which is marked; it is made where it is missing.

    That is the name of its folder. Where another run of that name has the place, as one of another
    `output_dir` or an earlier one from before `resume=false`, or files of somebody else's are
    there, it is `NAME-2`, and so on.

    Args:
        folder: The run folder.
        identity: Of the run.
        marker: The file that marks the place of a name.
        occupied: Whether there is something at the place of a name, beside the marker.
        known: The name that was returned before.

    Raises:
        OSError: If it cannot be written.
    """
    if known and _owner(marker(known)) == identity:
        return known
    for number in itertools.count(1):
        name = folder.path.name if number == 1 else f"{folder.path.name}-{number}"
        path = marker(name)
        if not path.exists() and not occupied(name):
            _mark(path, {IDENTITY: identity, "folder": str(folder.path)})
        if _owner(path) == identity:
            return name
    raise AssertionError


def _mark(marker: Path, content: dict[str, str]) -> None:
    """Write a marker, unless another process does so at the same moment."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    text = to_json(content) + "\n"
    with contextlib.suppress(FileExistsError), marker.open("x") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:  # a full disk; an empty marker would be nobody's for ever
            marker.unlink(missing_ok=True)
            raise


def _owner(marker: Path) -> str:
    """Return the identity of the run that has a place; empty without a marker that can be read."""
    try:
        return str(read_object(marker).get(IDENTITY, ""))
    except ValueError:
        return ""
