"""The same tests on the CPU and on a GPU; the latter are marked `gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.e2e.conftest import Command, caller, images


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test computes."""
    return torch.device(request.param)


@pytest.fixture
def fishr_exp(tmp_path) -> Command:
    """Call `fishr-exp`; runs go to `tmp_path/runs`."""
    return caller(tmp_path / "runs")


__all__ = ["images"]
