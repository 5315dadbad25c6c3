"""The loss of each sample, and its gradient at the logits in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UnsupportedError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits [N, C] and targets [N] to losses [N], each of its own sample.

With a method `gradient_at_logits(logits, targets)`, a classifier needs no backward pass.
"""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of each sample; with one logit, binary cross-entropy with a sigmoid.

        l = -sum_c t_c log p_c,    t_c = (1 - label_smoothing) w_y [c = y] + label_smoothing w_c / C

    Not reduced, since a mean would scale the per-sample gradients by 1/n.

    Args:
        label_smoothing: Fraction of each label that is spread over all classes, in [0, 1].
        class_weights: w, one per class, >= 0 and not all 0; None: all 1. Losses are not divided by
            the sum of their weights.

    Raises:
        UnsupportedError: If an argument is out of range.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise UnsupportedError(f"label_smoothing={self.label_smoothing}: must be in [0, 1]")
        weights = self.class_weights or ()
        if not all(math.isfinite(w) and w >= 0 for w in weights):
            raise UnsupportedError(f"class_weights={weights}: must be finite and not negative")
        if self.class_weights is not None and not any(weights):
            raise UnsupportedError(f"class_weights={weights}: must not all be 0")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Map logits [N, C] and targets [N], int64, to losses [N], in nats.

        C = 1 means two classes.

        Raises:
            UnsupportedError: If `logits` is not a matrix with one row per target, or the number of
                weights is not the number of classes.
        """
        if logits.ndim != 2 or len(logits) != len(targets):
            raise UnsupportedError(
                f"logits {tuple(logits.shape)} with {len(targets)} targets: expected [N, C] and [N]"
            )
        if logits.shape[1] == 1 and self._is_plain:
            return F.binary_cross_entropy_with_logits(
                logits[:, 0], targets.to(logits.dtype), reduction="none"
            )
        two = _two_logits(logits)
        return F.cross_entropy(
            two,
            targets,
            weight=self._weights(two),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def gradient_at_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Gradient of the losses at their logits, softmax(z) sum_c t_c - t.

        With the defaults softmax(z) - onehot(y), or sigmoid(z) - y for one logit.

        Args:
            logits: [N, C].
            targets: [N].

        Returns:
            [N, C], at least in float32, since the difference would lose most digits in half
            precision; differentiable with respect to the logits.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if logits.shape[1] == 1 and self._is_plain:
            return logits.sigmoid() - targets.to(logits.dtype).unsqueeze(1)
        two = _two_logits(logits)
        onehot = torch.zeros_like(two).scatter_(1, targets.unsqueeze(1), 1)
        if self._is_plain:
            return two.softmax(1) - onehot
        t = (1 - self.label_smoothing) * onehot + self.label_smoothing / two.shape[1]
        weights = self._weights(two)
        if weights is not None:
            t = weights * t
        gradient = two.softmax(1) * t.sum(1, keepdim=True) - t
        return gradient[:, 1:] if logits.shape[1] == 1 else gradient

    @property
    def _is_plain(self) -> bool:
        return self.label_smoothing == 0 and self.class_weights is None

    def _weights(self, logits: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        weights = torch.tensor(self.class_weights, dtype=logits.dtype, device=logits.device)
        if len(weights) != logits.shape[1]:
            raise UnsupportedError(
                f"class_weights={list(self.class_weights)}: {len(weights)} weights, but there are "
                f"{logits.shape[1]} classes"
            )
        return weights


def losses_of_samples(loss: Loss, logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the losses [N] of a batch.

    Args:
        loss: The caller's loss; its exceptions pass through.
        logits: [N, C].
        targets: [N].
        count: N.

    Raises:
        UnsupportedError: If `loss` does not return one number per sample.
    """
    losses = loss(logits, targets)
    if losses.shape != (count,):
        raise UnsupportedError(
            f"loss: returned shape {tuple(losses.shape)} for {count} samples; expected one loss "
            'per sample, not reduced (in torch.nn.functional: reduction="none")'
        )
    return losses


def _two_logits(logits: Tensor) -> Tensor:
    """Add the constant logit 0 to a single logit z: sigmoid(z) = softmax((0, z))[1]."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


per_sample_losses = CrossEntropy()
"""Cross-entropy [N] of logits [N, C] and targets [N], without smoothing or weights."""
