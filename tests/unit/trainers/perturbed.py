"""The gradient around a point, as methods that perturb the weights have it: slow, in float64."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from fishr_exp.core.contracts import Batch, Model


def case(*sizes: int, normalized: bool = False) -> tuple[Model, Batch]:
    """A small network, and a batch of domains with these sizes."""
    torch.manual_seed(0)
    normalization = [nn.BatchNorm1d(4)] if normalized else []
    featurizer = nn.Sequential(nn.Linear(5, 4), *normalization, nn.Tanh())
    network = Model(featurizer, nn.Linear(4, 3)).double()
    x, y = torch.randn(sum(sizes), 5, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    return network, Batch(x, y, sizes)


def gradient(network: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean risk of the domains, and its gradient as one long vector."""
    parts = zip(batch.by_domain(batch.x), batch.by_domain(batch.y), strict=True)
    risk = torch.stack([F.cross_entropy(network(x), y) for x, y in parts]).mean()
    found = torch.autograd.grad(risk, [*network.parameters()])
    return risk.detach(), torch.cat([g.flatten() for g in found])


def shifted(network: Model, step: torch.Tensor) -> Model:
    """A copy with other weights."""
    other = copy.deepcopy(network)
    weights = nn.utils.parameters_to_vector(other.parameters())
    nn.utils.vector_to_parameters(weights + step, other.parameters())
    return other


def flat(gradients: object) -> torch.Tensor:
    """Gradients as one long vector."""
    return torch.cat([g.flatten() for g in gradients])  # type: ignore[attr-defined]
