"""What a block sets aside is as before after it."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from fishr_exp.core.quiet import without_warnings
from fishr_exp.core.seeding import global_streams_kept, seed_global_streams


@pytest.mark.parametrize("before", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_the_level_from_before_is_kept(before: int) -> None:
    logging.disable(before)
    try:
        with without_warnings():
            assert not logging.getLogger("any").isEnabledFor(logging.WARNING)
            assert logging.root.manager.disable == max(before, logging.WARNING)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_the_global_streams_are_kept() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_global_streams(3)
    expected = draws()
    seed_global_streams(3)
    with global_streams_kept():
        seed_global_streams(4)
        assert draws() != expected
    assert draws() == expected
