"""Fixtures for every test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
_HOSTILE = "tests/hostile/test_"

# The last bits of a result depend on the number of threads. And tests fork this process: a fork
# waits forever for the threads that OpenMP started here, unless it computes on one of its own.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; skips the test where there is none."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real data: ../shared/data is absent")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many attacks of each group were tried, and how many of them did not hold."""
    tried: Counter[str] = Counter()
    fell: Counter[str] = Counter()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            name = getattr(report, "nodeid", "")
            if outcome in ("passed", "failed", "error") and name.startswith(_HOSTILE):
                group = name.removeprefix(_HOSTILE).partition(".")[0].replace("_", " ")
                tried[group] += 1
                fell[group] += outcome != "passed"
    for group, number in sorted(tried.items()):
        said = f"attacks, {group}: {number}, of which {fell[group]} fell short"
        terminalreporter.write_line(said)
