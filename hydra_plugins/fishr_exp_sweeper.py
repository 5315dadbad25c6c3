"""`hydra/sweeper=fishr_exp`, which stands here because Hydra takes sweepers from here alone."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class SharingSweeper(BasicSweeper):
    """Make the runs that are missing; conf/hydra/sweeper/fishr_exp.yaml describes the arguments.

    The words of each run are those of Hydra's basic sweeper, for each grid.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Find the runs, check them all, and launch what is not done."""
        from fishr_exp.configuration.sweeping.grids import split
        from fishr_exp.configuration.sweeping.sweep import Sweep

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        words = split(self.params, arguments, loader)
        Sweep(self.config, loader, self.launcher, words, self.max_batch_size).make()
