"""The figures and tables of docs/results are what their records give."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def redraw() -> ModuleType:
    return importlib.import_module("redraw_results")


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        *(f"colored_mnist_table{number}" for number in (2, 5, 6)),
        "gamma_colored_mnist",
    ],
)
def test_figures_and_tables_are_those_of_the_records(
    redraw: ModuleType, tmp_path: Path, name: str
) -> None:
    assert redraw.main([name, "--out", str(tmp_path)]) == 0
    files = list(tmp_path.iterdir())
    assert files
    for file in files:
        kept = RESULTS / file.name
        if file.suffix != ".png":
            assert file.read_text() == kept.read_text()
            continue
        new, old = (np.asarray(Image.open(f).convert("RGB"), dtype=float) for f in (file, kept))
        assert new.shape == old.shape
        assert np.abs(new - old).mean() < 1  # of 255; edges depend on the version of matplotlib


def test_the_page_of_matching_has_the_numbers_of_the_records() -> None:
    study = importlib.import_module("matching_study")
    compared = study.against_erm(study.read(RESULTS / "records" / "pacs_lite0"))
    assert (RESULTS / "matching.md").read_text().endswith(f"{study.describe(compared)}\n")


def test_each_figure_has_its_records_and_a_command_that_redraws_it(redraw: ModuleType) -> None:
    script = (ROOT / "scripts" / "redraw_results.py").read_text()
    study = (ROOT / "scripts" / "matching_study.py").read_text()
    drawn = {
        *re.findall(r'"(\w+\.png)"', script),
        *(f"{name}.png" for name in re.findall(r'out / "(matching_\w+)"', study)),
        *(f"pacs_lite0_{domain}.png" for domain in redraw.PACS),
        *(f"{name}.png" for name in redraw.DRAWN if "_gpu_" in name),
    }
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    for figure in RESULTS.glob("*.png"):
        assert figure.name in drawn
        assert figure.name in pages + (ROOT / "docs" / "evaluate.md").read_text(), figure
    for folder in re.findall(r'drawn\(\s*"(\w+)"', script):
        assert any((RESULTS / "records" / folder).glob("*/records.jsonl")), folder
