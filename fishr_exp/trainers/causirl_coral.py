"""CausIRL with CORAL: match two random groups of samples of all domains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishr_exp.trainers._distances import coral_distance
from fishr_exp.trainers._one_pass import ForwardPass, Penalty


class CausirlCoral(Penalty):
    """Penalize CORAL's distance between two groups, each with samples of all domains.

        objective = R + gamma · d(A, B)

    A has the first c_e samples of domain e, and B the others, with c_e drawn from 0, …, n_e − 1;
    d is that of `Coral`. The penalty is 0 if a group has fewer than two samples.

    For the arguments, see `Penalty`.

    Source: Chevalley, Bunne, Krause and Bauer (2022, arXiv:2206.11646); in this form DomainBed.

    Departs: the cuts come from PyTorch's random stream, not from NumPy's.
    """

    printed_name = "CausIRL-CORAL"
    refuses_processes = "draws its groups in each process"

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Distance of the two groups."""
        first, second = [], []
        for features in forward.batch.by_domain(forward.features):
            cut = int(torch.randint(len(features), ()))
            first.append(features[:cut])
            second.append(features[cut:])
        groups = [torch.cat(first), torch.cat(second)]
        if min(map(len, groups)) < 2:
            return 0 * forward.features.sum()
        return self.distance(groups).nan_to_num()

    def distance(self, groups: Sequence[Tensor]) -> Tensor:
        """Distance of groups [n, F]."""
        return coral_distance(groups)
