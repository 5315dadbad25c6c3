"""The table of layers: what it says of them, never the times in it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return importlib.import_module("table_of_layers")


HOW = {
    "Linear on [N·T, F]": ("by rule", ""),
    "Conv2d, standardized weight": ("by rule", ""),
    "Embedding on [N]": ("by rule", ""),
    "PReLU": ("sample by sample", "layer.weight"),
    "EmbeddingBag": ("refused", "not implemented"),
    "BatchNorm2d, training mode": ("refused", "batch_statistics=constant"),
    "Dropout, training mode, beside PReLU": ("refused", "draws random numbers"),
}


@pytest.mark.parametrize("name", HOW)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_says_how_a_layer_is_computed(table: ModuleType, name: str) -> None:
    row = table.examine(table.LAYERS[name], samples=2, rounds=1)
    how, reason = HOW[name]
    assert row.how == how
    assert reason in row.parameters
    assert bool(row.parameters) == bool(reason)
    assert (row.ratio is None) == (how == "refused")


@pytest.mark.filterwarnings("ignore")
def test_writes_its_section_of_a_page(table: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["Linear", "PReLU", "--samples", "2", "--rounds", "1", "--markdown", str(page)]
    table.main(arguments)
    written = page.read_text()
    assert written.startswith(f"before\n{table.BEGIN}\n\nMeasured ")
    assert written.endswith(f"{table.END}\nafter\n")
    assert "old" not in written
    rows = [line.split("|")[1:3] for line in written.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["layer", "computed"],
        ["Linear", "by rule"],
        ["PReLU", "sample by sample"],
    ]


def test_a_page_without_marks_is_left_alone(table: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("page\n")
    with pytest.raises(SystemExit, match="has no marks"):
        table.write_section(page, "section")
    assert page.read_text() == "page\n"


def test_the_page_of_fishr_has_its_marks(table: ModuleType) -> None:
    page = (SCRIPTS.parent / "docs" / "methods" / "fishr.md").read_text()
    assert page.index(table.BEGIN) < page.index(table.END)
