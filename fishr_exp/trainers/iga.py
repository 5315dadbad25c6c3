"""IGA: match the mean gradients of the domains, over all parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishr_exp.core import distributed
from fishr_exp.core.contracts import trainable
from fishr_exp.gradient_variance.terms.distributed import sum_over_ranks
from fishr_exp.trainers._directions import each_domain
from fishr_exp.trainers._features import FeaturesRead
from fishr_exp.trainers._one_pass import ForwardPass, Part, Penalty
from fishr_exp.trainers._terms import mean_risk


class Iga(Penalty):
    """Penalize the spread of the domains' gradients.

        objective = R + gamma · Σ_e ‖g_e − g‖²,    g = (1/D) Σ_e g_e

    where g_e is the gradient of R_e with respect to all parameters. Each domain has a forward and a
    backward pass of its own; a joint forward pass would be differentiated D times as a whole. So
    BatchNorm in training mode normalizes each domain by itself. While the weight is 0, the penalty
    is not computed.

    For the arguments, see `Penalty`.

    Source: Koyama and Yamaguchi (2020, arXiv:2008.01883), version 2; as a sum, DomainBed.
    """

    printed_name = "IGA"
    min_domains = 2
    refuses_compile = (
        "IGA needs second derivatives of the featurizer, which compiled code does not have; pass "
        "compile=false"
    )

    def begin(self, forward: ForwardPass) -> None:
        """Make the forward pass domain by domain, and differentiate each risk."""
        if self.weight(forward.step) == 0:
            return
        parameters = trainable(forward.model)
        features, logits, losses, gradients = [], [], [], []
        for part in each_domain(forward.batch):
            with FeaturesRead(forward.model) as read:
                logits.append(forward.model(part.x))
            features.append(read.features)
            losses.append(self.loss(logits[-1], part.y))
            with torch.autocast(part.x.device.type, enabled=False):
                gradients.append(_gradients(mean_risk(part, losses[-1]), parameters))
        known = [each for each in features if each is not None]
        joined = torch.cat(known) if len(known) == len(features) else None
        forward.adopt(joined, torch.cat(logits), torch.cat(losses))
        forward.kept[self] = _spread(gradients)

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The spread, with its weight at this step."""
        return [Part(forward.kept.get(self), self.weight(forward.step))]


def _gradients(risk: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the risk over the samples of all ranks, with graph."""
    found = torch.autograd.grad(
        risk, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    if not distributed.is_active():
        return list(found)
    return [sum_over_ranks(each) / distributed.world_size() for each in found]


def _spread(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Sum over domains and coordinates of the squared distance from the domains' mean."""
    by_parameter = [torch.stack(each) for each in zip(*gradients, strict=True)]  # [D, *shape]
    return torch.stack([(each - each.mean(0)).square().sum() for each in by_parameter]).sum()
