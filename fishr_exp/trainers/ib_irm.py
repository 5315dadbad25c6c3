"""IB-IRM: IRM with an information bottleneck."""

from __future__ import annotations

from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._terms import check_steps, check_weight
from fishr_exp.trainers.composed import Composed


class IbIrm(Composed):
    """Combine the penalties of IRM and IB-ERM.

        objective = R + irm_gamma · penalty of IRM + ib_gamma · penalty of IB-ERM

    Before their steps the weights are 1 (IRM) and 0 (IB-ERM); at each of them the optimizer is made
    from scratch.

    Args:
        irm_gamma: Weight of IRM's penalty, finite and >= 0.
        irm_anneal_steps: Steps before it acts; until then it is 1.
        ib_gamma: Weight of the variance of the features within each domain, finite and >= 0.
        ib_anneal_steps: Steps before it acts.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Ahuja et al. (NeurIPS 2021, arXiv:2106.06607); in this form DomainBed.
    """

    printed_name = "IB-IRM"

    def __init__(
        self,
        irm_gamma: float = 100.0,
        irm_anneal_steps: int = 500,
        ib_gamma: float = 100.0,
        ib_anneal_steps: int = 500,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        for name, gamma, steps in (
            ("irm", irm_gamma, irm_anneal_steps),
            ("ib", ib_gamma, ib_anneal_steps),
        ):
            check_weight(f"trainer.{name}_gamma", gamma)
            check_steps(f"trainer.{name}_anneal_steps", steps)
        penalties = {
            "irm": {"gamma": irm_gamma, "anneal_steps": irm_anneal_steps},
            "ib_erm": {"gamma": ib_gamma, "anneal_steps": ib_anneal_steps},
        }
        super().__init__("mean", penalties, l2, loss)
        self.acts_from = {
            f"{name}_gamma": self.acts_from[f"penalties.{of}.gamma"]
            for name, of in (("irm", "irm"), ("ib", "ib_erm"))
            if f"penalties.{of}.gamma" in self.acts_from
        }
