"""How far a model's confidence is from its accuracy: reliability by bins of the confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from fishr_exp.runs.evaluated import Bin

BINS = 15  # as in Guo et al. 2017


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities [n, C], float64, of logits [n, C], or [n, 1] for two classes."""
    logits = logits.double()
    if logits.shape[1] == 1:
        positive = logits[:, 0].sigmoid()
        return torch.stack([1 - positive, positive], 1)
    return logits.softmax(1)


class Reliability:
    """Counts samples by confidence, in bins of equal width; those of parts of a domain add up.

    A sample of confidence p is in bin m if (m - 1) / M < p <= m / M.

    Args:
        device: Where the probabilities are.
        bins: M, the number of bins.

    Source:
        Guo et al. 2017 (arXiv:1706.04599), section 2.
    """

    def __init__(self, device: torch.device, bins: int = BINS) -> None:
        self.sums = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def add(self, probability: Tensor, predicted: Tensor, y: Tensor) -> None:
        """Count samples.

        Args:
            probability: Of each class, [n, C].
            predicted: Classes [n].
            y: Labels [n].
        """
        confidence = probability.gather(1, predicted[:, None])[:, 0]
        bins = self.sums.shape[1]
        place = (confidence * bins).ceil().long().clamp(1, bins) - 1
        right = (predicted == y).double()
        for sums, values in zip(
            self.sums, (torch.ones_like(right), confidence, right), strict=True
        ):
            sums += torch.bincount(place, values, minlength=bins)

    def __add__(self, other: Reliability) -> Reliability:
        both = Reliability(self.sums.device, self.sums.shape[1])
        both.sums = self.sums + other.sums
        return both

    def bins(self) -> tuple[Bin, ...]:
        """Return the bins, by ascending confidence."""
        count = self.sums.shape[1]
        return tuple(
            Bin(
                m / count,
                (m + 1) / count,
                int(samples),
                confidence / samples if samples else None,
                right / samples if samples else None,
            )
            for m, (samples, confidence, right) in enumerate(self.sums.T.tolist())
        )
