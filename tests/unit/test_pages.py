"""What benchmarks write: where they were measured, and sections that replace only themselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from fishr_exp.runs.environment import environment, processor


@pytest.fixture
def pages() -> ModuleType:
    return importlib.import_module("pages")


def test_a_measurement_names_machine_settings_and_versions(pages: ModuleType) -> None:
    where, _, versions = pages.measured("threads: 1", "", "9 rounds").partition("; ")
    assert where.endswith(f" on {processor()}, threads: 1, 9 rounds")
    for package, version in environment("cpu", 1)["versions"].items():
        assert f"{package} {version}" in versions


def test_a_section_takes_the_place_of_the_one_with_its_heading(
    pages: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    pages.write_page(page, ["# Title", "\nabove\n"])
    for times in ("1", "2"):
        pages.write_section(page, f"## Growth\n\n{times}")
        pages.write_section(page, f"## Tracking\n\n{times}")
    assert page.read_text() == "# Title\n\nabove\n\n## Growth\n\n2\n\n## Tracking\n\n2\n"


def test_an_explanation_is_without_title_and_use(pages: ModuleType) -> None:
    documentation = "Title.\n\nHow it is run.\n\nWhat\nit is.\n"
    assert pages.explained(documentation) == "How it is run.\n\nWhat\nit is."
    assert pages.explained(documentation, skip=2) == "What\nit is."
    assert pages.explained(None) == ""
