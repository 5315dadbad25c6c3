"""What is wrong with the runs of a sweep: all of it at once, each mistake in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MistakesError(Exception):
    """What is wrong with runs of the sweep: each mistake, and the runs that it is in."""

    def __init__(self, runs: Mapping[str, Sequence[str]]) -> None:
        super().__init__(runs)
        self.runs = runs

    def lines(self) -> list[str]:
        """A line for each mistake, with the first run that has it."""
        more = {m: f" and {len(runs) - 1} more" * (len(runs) > 1) for m, runs in self.runs.items()}
        return [f"{m} (in: {runs[0]}{more[m]})" if runs[0] else m for m, runs in self.runs.items()]
