"""The benchmark of reading images, on a few tiny ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_data.py"


@pytest.mark.slow  # half a minute: processes that import torch, and steps of a ResNet-18
def test_both_sides_are_measured_and_written(tmp_path):
    draw = np.random.default_rng(0)
    for domain in ("art", "photo"):
        for number in range(8):
            path = tmp_path / "images" / domain / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    words = ["--sizes", "32", "--batch-size", "4", "--rounds", "1", "--seconds", "0.2", "--steps",
             "1", "--cache", tmp_path / "cache", "--markdown", tmp_path / "page.md"]  # fmt: skip
    command = [sys.executable, str(SCRIPT), str(tmp_path / "images"), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=300, env=env, stdout=subprocess.DEVNULL)
    lines = (tmp_path / "page.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    by_name = {row[1]: row for row in rows if row[0] == "32"}
    assert set(by_name) == {"domainbed", "files", "cache", "0", "1"}
    assert by_name["domainbed"][4] == "1.0"
    for name in ("domainbed", "files", "cache"):
        assert float(by_name[name][2]) > 0  # images a second
        assert float(by_name[name][5]) > 0  # milliseconds of a core an image
    for workers in ("0", "1"):
        assert 0 <= float(by_name[workers][4].removesuffix(" %")) < 100
