"""The place of a run in a folder of many: its own, also where two ask for it at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fishr_exp.runs.run_folder import RunFolder
from fishr_exp.tracking import places
from fishr_exp.tracking.places import place_of_run


def _asked(root: Path, identity: str) -> str:
    folder = RunFolder(root / identity / "run")
    return place_of_run(folder, identity, lambda name: root / f"{name}.json", lambda _: False)


def test_another_run_of_that_name_gets_another_place(tmp_path: Path) -> None:
    assert [_asked(tmp_path, name) for name in ("a", "b", "a", "b")] == ["run", "run-2"] * 2


def test_a_place_that_is_taken_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process marks it after it was seen to be free."""
    text = places.to_json

    def late(content: dict[str, str]) -> str:
        if content["identity"] == "a" and not (tmp_path / "run.json").exists():
            (tmp_path / "run.json").write_text(json.dumps({"identity": "b"}))
        return text(content)

    monkeypatch.setattr(places, "to_json", late)
    assert _asked(tmp_path, "a") == "run-2"
    assert json.loads((tmp_path / "run.json").read_text())["identity"] == "b"


def test_a_full_disk_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(opened(self, mode)))
    with pytest.raises(OSError, match="No space"):
        _asked(tmp_path, "a")
    monkeypatch.undo()
    assert not (tmp_path / "run.json").exists()
    assert _asked(tmp_path, "a") == "run"
