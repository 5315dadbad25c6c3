"""The loss of each sample, and its gradient at the logits where that is known in closed form."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def per_sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample; with one logit, binary cross-entropy with a sigmoid.

    Args:
        logits: [N, C]; C = 1 means two classes.
        targets: [N], int64, in [0, C), or in {0, 1} for one logit.

    Returns:
        [N], in nats; not reduced, since a mean would scale the per-sample gradients by 1/n.

    Raises:
        ValueError: If `logits` is not a matrix with a row for each target.
    """
    if logits.ndim != 2 or len(logits) != len(targets):
        raise ValueError(
            f"logits {tuple(logits.shape)} with {len(targets)} targets: expected [N, C] and [N]"
        )
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(
            logits[:, 0], targets.to(logits.dtype), reduction="none"
        )
    return F.cross_entropy(logits, targets, reduction="none")


def gradient_at_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of `per_sample_losses` at its logits: softmax(z) - onehot(y), or sigmoid(z) - y.

    Args:
        logits: [N, C].
        targets: [N].

    Returns:
        [N, C], differentiable in the logits.
    """
    if logits.shape[1] == 1:
        return logits.sigmoid() - targets.to(logits.dtype).unsqueeze(1)
    return logits.softmax(1) - F.one_hot(targets, logits.shape[1]).to(logits.dtype)
