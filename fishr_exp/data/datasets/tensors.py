"""A domain in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fishr_exp.core.contracts import Minibatch
from fishr_exp.data.digests import digest_of


class TensorDomain:
    """Images and labels of one domain as two tensors.

    Args:
        name: The domain's name.
        x: Images [N, C, H, W]; uint8 in 0..255, read as float32 in [0, 1], or float32, read
            unchanged.
        y: Labels [N], int64.
    """

    def __init__(self, name: str, x: Tensor, y: Tensor) -> None:
        assert x.dtype in (torch.uint8, torch.float32), x.dtype
        assert y.dtype == torch.int64, y.dtype
        assert len(x) == len(y), (len(x), len(y))
        self.name = name
        self._x = x
        self._y = y
        self._all = torch.arange(len(y))

    @property
    def labels(self) -> Tensor:
        """The labels, int64 [N]."""
        return self._y

    @property
    def digest(self) -> str:
        """Of the labels; see `digests.py`."""
        return digest_of((), self._y)

    def __len__(self) -> int:
        return len(self._y)

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:  # noqa: ARG002
        """Read the samples at `indices` ([n], int64); never augmented.

        If they are the whole domain in order, float32 data is not copied, so treat the result as
        read-only.
        """
        x, y = self._x, self._y
        whole = len(indices) == len(self) and torch.equal(indices, self._all)
        if not whole:
            x, y = x.index_select(0, indices), y.index_select(0, indices)
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255)  # [n, C, H, W]
        return Minibatch(x, y)
