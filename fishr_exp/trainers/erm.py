"""Empirical risk minimization, the baseline."""

from __future__ import annotations

from fishr_exp.trainers._one_pass import OnePass


class Erm(OnePass):
    """Minimize the mean risk of the training domains.

        objective = (1/D) Σ_e R_e + l2 · Σ‖w‖²

    Args:
        l2: Weight of the squared norm of all parameters, >= 0. It is a term of the loss, as in the
            Colored MNIST script; an optimizer's `weight_decay` of 2·l2 has the same gradient.
        loss: Of each sample.

    Raises:
        ConfigError: If `l2` is negative.

    Source: Vapnik (1998); as a baseline, Gulrajani and Lopez-Paz (arXiv:2007.01434).
    """

    printed_name = "ERM"
