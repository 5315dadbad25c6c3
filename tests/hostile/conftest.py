"""Attacks in groups, one file a group: what a user, a stranger's file or a server may do wrong.

Each case is a test of its own, so that the number of cases is the number of tests; it is printed
for each group at the end. `docs/faults.md` gives the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Command, caller


@pytest.fixture
def fishr_exp(tmp_path: Path) -> Command:
    """Call `fishr-exp` with overrides on top of `TINY`; runs go to `tmp_path/runs`."""
    return caller(tmp_path / "runs")
