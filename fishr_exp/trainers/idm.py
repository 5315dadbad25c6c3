"""IDM: match the whole distributions of features and of per-sample gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass, Part, Schedule
from fishr_exp.trainers._terms import check_steps, check_weight, of_all_ranks


class Idm(OnePass):
    """Penalize the distance of the domains' sorted features, and of their sorted gradients.

        objective = R + feature_gamma · P(features) + gradient_gamma · P(gradients)
        P(a) = (1/D) Σ_e mean over samples and columns of (s_e − s)²,    s = (1/D) Σ_e s_e

    where s_e [n, columns] are the columns of a in domain e, each sorted over the samples: two
    domains are at distance 0 if each column has the same distribution in both. The gradients are
    those of the classifier's weights and biases for each sample. Their sorted values are smoothed
    over the steps, as the variances of `fishr_domainbed` are.

    Args:
        feature_gamma: Weight of the features' penalty, from the first step on, finite and >= 0.
        gradient_gamma: Weight of the gradients' penalty, finite and >= 0.
        anneal_steps: Steps before `gradient_gamma` acts; the optimizer is made from
            scratch there.
        ema_decay: Of the moving average of the sorted gradients, in [0, 1); 0 is none.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Dong et al. (IEEE Transactions on Information Theory, 2025, arXiv:2406.09745).

    Departs: domains with more samples than the smallest one have their sorted columns interpolated
    at as many quantiles.
    """

    printed_name = "IDM"
    min_domains = 2

    def __init__(
        self,
        feature_gamma: float = 1.0,
        gradient_gamma: float = 1000.0,
        anneal_steps: int = 1500,
        ema_decay: float = 0.95,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        gammas = {"feature_gamma": feature_gamma, "gradient_gamma": gradient_gamma}
        for name, value in gammas.items():
            check_weight(f"trainer.{name}", value)
        check_steps("trainer.anneal_steps", anneal_steps)
        if not 0 <= ema_decay < 1:
            raise ConfigError("trainer.ema_decay", ema_decay, "must be in [0, 1)")
        self.feature_gamma, self.gradient_gamma = feature_gamma, gradient_gamma
        self.anneal_steps, self.ema_decay = anneal_steps, ema_decay
        self.schedule = Schedule(resets_optimizer=True)
        self.resets = self.schedule.resets(gradient_gamma, anneal_steps)
        self.acts_from = {"gradient_gamma": anneal_steps}
        self.average: Tensor | None = None  # of the sorted gradients, [D, n, P]

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The penalties of features and gradients."""
        weight = self.schedule.weight(self.gradient_gamma, self.anneal_steps, forward.step)
        by_domain = of_all_ranks(forward.batch, forward.features)
        with torch.set_grad_enabled(weight > 0):
            gradients = self._smoothed(_sorted(self._gradients(forward, by_domain)))
        return [
            Part(_spread(_sorted(by_domain)), self.feature_gamma, "feature_penalty"),
            Part(_spread(gradients), weight, "gradient_penalty"),
        ]

    def _gradients(self, forward: ForwardPass, features: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the classifier's weights and biases for each sample, D tensors [n, P]."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            delta = forward.gradients_at_logits(create_graph=wanted)
        found = []
        for own, f in zip(of_all_ranks(forward.batch, delta), features, strict=True):
            of_weight = (own[:, :, None] * f[:, None, :]).flatten(1)
            has_bias = forward.model.classifier.bias is not None
            found.append(torch.cat([of_weight, own], 1) if has_bias else of_weight)
        return found

    def _smoothed(self, value: Tensor) -> Tensor:
        """Average over the steps, divided by 1 − ema_decay; gradients flow through this step."""
        if self.ema_decay == 0:
            return value
        average = (1 - self.ema_decay) * value
        if self.average is not None and self.average.shape == value.shape:
            average = self.ema_decay * self.average.to(value.device) + average
        self.average = average.detach()
        return average / (1 - self.ema_decay)

    def get_extra_state(self) -> dict[str, Any]:
        """The moving average, which a checkpoint must hold."""
        return {"average": self.average}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the moving average of a checkpoint."""
        self.average = state["average"]


def _sorted(by_domain: Sequence[Tensor]) -> Tensor:
    """Sort the columns of D tensors [n, K], and bring them to as many rows as the shortest has."""
    rows = min(map(len, by_domain))
    columns = [values.sort(0).values for values in by_domain]
    if any(len(each) != rows for each in columns):
        # [1, K, n]: between the smallest and the largest value at equal distances.
        columns = [
            F.interpolate(each.T[None], rows, mode="linear", align_corners=True)[0].T
            for each in columns
        ]
    return torch.stack(columns)


def _spread(values: Tensor) -> Tensor:
    """Mean over domains, samples and columns of the squared distance from the domains' mean."""
    return (values - values.mean(0)).square().mean()
