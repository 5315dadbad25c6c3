"""SD: spectral decoupling, a penalty on the size of the logits."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.trainers._one_pass import ForwardPass, Penalty
from fishr_exp.trainers._terms import of_all_ranks


class Sd(Penalty):
    """Penalize the mean square of the logits.

        objective = R + gamma · mean over all samples and classes of z²

    For the arguments, see `Penalty`.

    Source: Pezeshki et al. (NeurIPS 2021, arXiv:2011.09468).

    Departs: as in DomainBed, from the paper's (gamma / 2) ‖z‖², a sum over the classes.
    """

    printed_name = "SD"

    def penalty(self, forward: ForwardPass) -> Tensor:
        """Mean over the samples of all domains."""
        squares = forward.logits.square().mean(1)
        by_domain = of_all_ranks(forward.batch, squares)
        samples = sum(map(len, by_domain))
        return sum(values.sum() for values in by_domain) / samples  # type: ignore[return-value]
