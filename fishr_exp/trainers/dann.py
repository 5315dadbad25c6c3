"""DANN: features from which no discriminator can tell the domain."""

from __future__ import annotations

from fishr_exp.trainers._adversary import DomainAdversary


class Dann(DomainAdversary):
    """Train the network against a discriminator of domains; all keys are `DomainAdversary`'s.

    Source: Ganin et al. (JMLR 2016, arXiv:1505.07818).

    Departs: two players with an optimizer each, one update a step, as in DomainBed, in place of
    the paper's gradient reversal.
    """

    printed_name = "DANN"
