"""Images of one domain, decoded when they are read, or from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fishr_exp.core.contracts import Minibatch
from fishr_exp.data.images.augmentation import Pixels, crop, draw
from fishr_exp.data.images.cache import Cached, cached
from fishr_exp.data.images.decoding import Files, Picture


class Pictures(Protocol):
    """Images by index: from files, a cache, or another dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Picture: ...


def stored(
    paths: Sequence[str],
    root: str,
    name: str,
    cache: str | None,
    stored_size: int | None,
    max_pixels: int,
) -> Files | Cached:
    """Return the images at `paths`: from the files, or from a cache, created if missing."""
    files = Files(paths, stored_size, max_pixels)
    return files if cache is None else cached(files, Path(root), name, Path(cache))


class ImageDomain:
    """Images of one domain.

    Args:
        name: The domain's name.
        pictures: The images, decoded when they are read, or from a cache.
        labels: Labels of the images, int64 [N].
        image_size: Height and width of the images that are read, in pixels.
        augment: Whether a read with a generator augments: a random crop of 70 to 100 % of the
            area, resized; a flip; brightness, contrast, saturation and hue by up to 0.3; gray in
            1 of 10 images. See `augmentation.py`.
        validation: Indices of the validation part, int64; None: drawn by `split`.
        digest: Of the names and labels of the images, see `digests.py`.
        paths: Of the images, for reports; empty if they have none.
    """

    def __init__(
        self,
        name: str,
        pictures: Pictures,
        labels: Tensor,
        *,
        image_size: int,
        augment: bool,
        validation: Tensor | None = None,
        digest: str = "",
        paths: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.digest = digest
        self.paths = paths
        self.validation = validation
        self.pictures = pictures
        self._y = labels
        self._size = (image_size, image_size)
        self._augment = augment

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labels(self) -> Tensor:
        """The labels, int64 [N]; no image is read."""
        return self._y

    def read(self, indices: Tensor, augment: torch.Generator | None = None) -> Minibatch:
        """Read the images at `indices` ([n], int64), augmented by draws from `augment`.

        Raises:
            TrainingError: If an image cannot be read; the message begins with its path.
        """
        return self.read_pixels(indices, augment).to(torch.device("cpu"))

    def read_pixels(self, indices: Tensor, augment: torch.Generator | None = None) -> Pixels:
        """Read like `read`, but leave the conversion to floats to the device."""
        pictures = [self.pictures[i] for i in indices.tolist()]
        x = torch.empty((len(pictures), 3, *self._size), dtype=torch.uint8)
        if augment is None or not self._augment:
            for place, (pixels, _) in zip(x, pictures, strict=True):
                height, width, _ = pixels.shape
                crop(pixels, (height, width), (0, 0, height, width), False, place)
            return Pixels(x, self._y[indices])
        drawn = draw(torch.tensor([picture.size for picture in pictures]), augment)
        for place, picture, box, flip in zip(
            x, pictures, drawn.box.tolist(), drawn.flip.tolist(), strict=True
        ):
            crop(picture.pixels, picture.size, box, flip, place)
        return Pixels(x, self._y[indices], drawn.colors)
