"""What MLflow is told of who and what made a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fishr_exp.tracking.mlflow_objects import tags_of_origin


@pytest.mark.parametrize(
    ("command", "name", "note"),
    [
        (["/a/fishr-exp", "dataset.root=/b/c"], "fishr-exp", "`fishr-exp dataset.root=/b/c`"),
        ([""], None, None),  # in an interactive Python
    ],
)
def test_the_source_is_the_program_and_the_command_the_description(
    tmp_path: Path, command: list[str], name: str | None, note: str | None
) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"command": command}))
    (tmp_path / "config.json").write_text("{}")
    tags = tags_of_origin(tmp_path)
    assert tags.get("mlflow.source.name") == name
    assert tags.get("mlflow.note.content") == note
