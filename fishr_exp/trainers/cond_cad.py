"""CondCAD: CAD among samples of the same label."""

from __future__ import annotations

from fishr_exp.trainers.cad import Cad


class CondCad(Cad):
    """Penalize that a sample can be told to be of its domain by its neighbors of the same label.

        objective = R + gamma · mean_i −(τ / 0.07) · log Σ_j p_ij over the j of other domains
        p_i = softmax over the j ≠ i with y_j = y_i of f_i · f_j / τ

    The mean is over the samples with a sample of their label in another domain of the batch;
    without one the penalty is 0. For the arguments, see `Cad`.

    Source: Ruan, Dubois and Maddison (ICLR 2022, arXiv:2201.00057); in this form DomainBed.
    """

    printed_name = "CondCAD"
    same_label = True
