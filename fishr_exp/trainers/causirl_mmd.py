"""CausIRL with MMD: match two random groups of samples of all domains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fishr_exp.trainers._distances import mmd_distance
from fishr_exp.trainers.causirl_coral import CausirlCoral


class CausirlMmd(CausirlCoral):
    """Penalize the maximum mean discrepancy of two groups, each with samples of all domains.

        objective = R + gamma · MMD(A, B)

    The groups are those of `CausirlCoral`, the discrepancy that of `Mmd`. For the arguments, see
    `Penalty`.

    Source: Chevalley, Bunne, Krause and Bauer (2022, arXiv:2206.11646); in this form DomainBed.
    """

    printed_name = "CausIRL-MMD"

    def distance(self, groups: Sequence[Tensor]) -> Tensor:
        """Discrepancy of groups [n, F]."""
        return mmd_distance(groups)
