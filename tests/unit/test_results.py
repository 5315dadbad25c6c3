"""The figures and tables of docs/results are what their records give."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fishr_exp.api import load_runs

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
    records, page = RESULTS / "records" / "pacs_lite0", (RESULTS / "matching.md").read_text()
    compared = study.against_erm(study.read(records))
    assert f"\n## Numbers\n\n{study.describe(compared)}\n\n## Noise\n" in page
    assert page.endswith(f"\n## Noise\n\n{study.describe_noise(records)}\n")
    restarted = study.read(RESULTS / "records" / "pacs_lite0_restarted")
    assert f"ERM that gets one has {restarted['relative'].mean():.2f}, and" in page
    gammas = compared[compared["gamma"].isin([0.1, 1.0, 10.0])]
    both = gammas.merge(restarted, on=study.PAIR, suffixes=("", "_new"))
    assert len(both) == 36
    assert (both["relative"] < both["relative_new"]).all()


def test_the_table_of_the_quickstart_is_the_one_of_its_records(
    redraw: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(redraw.RECORDS / "colored_digits_fishr"), "--out", str(tmp_path)]
    assert redraw.table.main(words) == 0
    (whole,) = re.findall(r"(?:^\|.*\n)+", (tmp_path / "table.md").read_text(), re.MULTILINE)
    assert whole in (RESULTS / "README.md").read_text()
    printed = capsys.readouterr().out.split("\n\n")[1]
    assert printed.startswith("method")
    assert f"```\n{printed}\n```" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "shown", "rows"),
    [
        (
            "pacs_resnet18",
            ["art_painting", "cartoon", "photo", "sketch", "mean", "train", "validation"],
            {
                "ERM | 830": math.nan,
                "Fishr, classifier, gamma 1 | 830": 1.0,
                "Fishr, all parameters, gamma 0.01 | 166": 0.01,
            },
        ),
        ("vlcs_mini", ["caltech", "labelme", "sun"], {"ERM": 0.0, "Fishr, gamma 1": 1.0}),
    ],
)
def test_tables_copied_by_hand_have_the_numbers_of_the_records(
    folder: str, shown: list[str], rows: dict[str, float]
) -> None:
    page = (RESULTS / "README.md").read_text()
    runs = load_runs(RESULTS / "records" / folder)
    assert len(runs) == len(rows) * runs["test_domains"].nunique()
    for name, gamma in rows.items():
        of = runs[runs["gamma"].isna() if math.isnan(gamma) else runs["gamma"] == gamma]
        known = dict(zip(of["test_domains"], of["test_accuracy"], strict=True)) | {
            "mean": of["test_accuracy"].mean(),
            "train": of["train_accuracy"].mean(),
            "validation": of["validation_accuracy"].mean(),
        }
        assert f"| {name} | {' | '.join(f'{100 * known[key]:.1f}' for key in shown)} |\n" in page


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
