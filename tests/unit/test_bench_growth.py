"""The growth of time and memory: its arithmetic, table and figure, never the times in them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("bench_growth")
    points = {"samples of each domain": 1, "domains": 0, "parameters": 2}
    grids = {}
    for axis, moving in points.items():
        grids[axis] = [
            tuple(8 * k if i == moving else 2 ** (i + 1) for i in range(3)) for k in (1, 2)
        ]
        grids[axis] = [(d, n, w if moving == 2 else 8) for d, n, w in grids[axis]]
    monkeypatch.setattr(module, "GRIDS", grids)
    return module


def test_writes_figure_numbers_and_its_section_of_the_page(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {name: [2**20 * k for k in range(1, 7)] for name in growth.CONTENDERS}
    monkeypatch.setattr(growth, "peaks_in_a_process", lambda name, _: peaks[name])
    page, numbers, stem = tmp_path / "page.md", tmp_path / "growth.json", tmp_path / "growth"
    page.write_text("# Title\n\n## Growth of old\n\nforgotten\n")
    options = [f"--markdown={page}", f"--json={numbers}", f"--figure={stem}", "--rounds=1"]
    threads = torch.get_num_threads()
    try:
        growth.main(options)
    finally:
        torch.set_num_threads(threads)

    text = page.read_text()
    assert text.startswith("# Title\n\n## Growth")
    assert "forgotten" not in text
    assert "(growth.png)" in text
    rows = json.loads(numbers.read_text())["rows"]
    assert len(rows) == 6 * len(growth.CONTENDERS)
    assert all(row["milliseconds"] > 0 for row in rows)
    assert [r["size"] for r in rows if r["axis"] == "domains"] == [8] * 3 + [16] * 3
    assert stem.with_suffix(".png").stat().st_size > 1000
    svg = stem.with_suffix(".svg").read_text()
    for word in ("Fishr, all parameters", "domains", "peak memory (MiB)"):
        assert word in svg


def test_the_exponent_is_that_of_the_power_law(growth: ModuleType) -> None:
    rows = [{"size": s, "milliseconds": 3.0 * s**1.5} for s in (1, 2, 4, 8)]
    assert growth.slope(rows, "milliseconds") == pytest.approx(1.5)


def test_a_point_lies_where_its_axis_says(growth: ModuleType) -> None:
    point = (2, 4, 8)
    model = growth.workload(point).model("cpu")
    assert model(growth.workload(point).batch("cpu").x).shape == (8, 10)
    assert growth.size("domains", point) == 2
    assert growth.size("samples of each domain", point) == 4
    convolutions = 9 * (1 * 8 + 8 * 16 + 16 * 16) + 8 + 16 + 16
    assert growth.size("parameters", point) == convolutions + 2 * (8 + 16 + 16) + 16 * 10 + 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_measures_the_peak_of_every_point(growth: ModuleType) -> None:
    # In a process of its own: of this one, others may give memory back meanwhile.
    code = (
        f"import sys, json; sys.path.insert(0, {str(SCRIPTS)!r}); import bench_growth as growth; "
        f"growth.GRIDS = {growth.GRIDS!r}; "
        "print(json.dumps(growth.measure_peaks('erm', growth.Platform())))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    peaks = json.loads(done.stdout)
    assert len(peaks) == 6
    assert all(peak >= 0 for peak in peaks)
