"""Attacks in groups, one file a group: what a user, a stranger's file or a server may do wrong.

Each case is a test of its own, so that the number of cases is the number of tests; it is printed
for each group at the end. `docs/faults.md` gives the same numbers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import Command, caller

_HERE = "tests/hostile/test_"


@pytest.fixture
def fishr_exp(tmp_path: Path) -> Command:
    """Call `fishr-exp` with overrides on top of `TINY`; runs go to `tmp_path/runs`."""
    return caller(tmp_path / "runs")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many attacks of each group were tried, and how many of them did not hold."""
    tried: Counter[str] = Counter()
    fell: Counter[str] = Counter()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            name = getattr(report, "nodeid", "")
            if outcome in ("passed", "failed", "error") and name.startswith(_HERE):
                group = name.removeprefix(_HERE).partition(".")[0].replace("_", " ")
                tried[group] += 1
                fell[group] += outcome != "passed"
    for group, number in sorted(tried.items()):
        said = f"attacks, {group}: {number}, of which {fell[group]} fell short"
        terminalreporter.write_line(said)
