"""The benchmark of half precision: its contenders and its section, never the times in it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("bench_precision")
    monkeypatch.setattr(module, "NETWORKS", {"tiny": ("torchvision", "mobilenet_v3_small")})
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_writes_a_section_with_float32_as_the_unit(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## Half precision\n\nforgotten\n\n## Growth\n\nkept\n")
    monkeypatch.setattr(sys, "argv", ["", "tiny", "--rounds", "1", "--markdown", str(page)])
    bench.main()
    written = page.read_text()
    assert "forgotten" not in written
    assert "kept" in written
    table = [line.split("|")[1:-1] for line in written.splitlines() if line.startswith("| tiny")]
    assert [row[1].strip() for row in table] == list(bench.WAYS)
    assert table[0][-1].strip() == "1.00"


def test_the_contenders_compute_in_different_ways(bench: ModuleType) -> None:
    made = []
    x = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    depthwise = torch.full((8, 1, 3, 3), 1 / 9)
    for contender in bench.contenders("tiny").values():
        with contender.autocast():
            made.append(torch.conv2d(x, depthwise, groups=8))
    float32, alone, ours = made
    assert float32.dtype == torch.float32
    assert alone.dtype == ours.dtype == torch.bfloat16
    assert not torch.equal(alone, ours)
