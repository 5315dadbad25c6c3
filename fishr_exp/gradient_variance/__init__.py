"""Exact, differentiable variance of per-sample gradients within each domain (Ramé et al. 2022).

It imports torch and no other part of this project, so it can be used in any training loop:

    variance = gradient_variance(model, inputs, targets, sizes)
    risk = torch.stack([part.mean() for part in variance.losses.split(sizes)]).mean()
    loss = risk + gamma * penalty(variance.variances)
    loss.backward()

Shapes in all files of this package: D domains, n samples of one domain, N samples of all domains,
C classes, P entries of a parameter, T positions at which a layer uses its parameter on one sample
(pixels, tokens), R and K rows and columns of a parameter as a matrix.
"""

from __future__ import annotations

from .errors import UnsupportedError
from .losses import CrossEntropy, Loss, per_sample_losses
from .penalty import divisor, penalty, squared_distance, squared_distance_with_gradient
from .variance import BATCH_STATISTICS, STATISTICS, GradientVariance, gradient_variance

__all__ = [
    "BATCH_STATISTICS",
    "STATISTICS",
    "CrossEntropy",
    "GradientVariance",
    "Loss",
    "UnsupportedError",
    "divisor",
    "gradient_variance",
    "penalty",
    "per_sample_losses",
    "squared_distance",
    "squared_distance_with_gradient",
]
