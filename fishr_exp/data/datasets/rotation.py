"""Images rotated by an angle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.tensors import TensorDomain


def rotate(images: Tensor, angle: float) -> Tensor:
    """Rotate gray images [N, H, W] (uint8 or float32) about their centers; uncovered corners are 0.

    Pillow rotates them one by one, as torchvision's `rotate` does for Pillow images and as
    DomainBed does; at the border of a digit its result differs from that of torchvision on tensors.

    Args:
        images: The images.
        angle: Degrees, counter-clockwise.
    """
    rotated = [
        np.asarray(Image.fromarray(image).rotate(angle, resample=Image.Resampling.BILINEAR))
        for image in images.numpy()
    ]
    return torch.from_numpy(np.stack(rotated))


def rotated_domains(
    images: Tensor, digits: Tensor, angles: Sequence[float]
) -> dict[str, TensorDomain]:
    """Build a domain for each of E angles, by name; domain i takes every E-th original.

    Args:
        images: Gray images [N, H, W], in the order in which they are distributed.
        digits: The digits that they show [N].
        angles: Degrees, counter-clockwise.

    Raises:
        ConfigError: If there is no angle, or one is repeated.
    """
    names = domain_names(angles)
    return {
        name: TensorDomain(
            name, rotate(images[i :: len(names)], angle)[:, None], digits[i :: len(names)]
        )
        for i, (name, angle) in enumerate(zip(names, angles, strict=True))
    }


def domain_names(angles: Sequence[float]) -> list[str]:
    """Return the names of the domains that are rotated by `angles`: `15` for 15 or 15.0.

    Raises:
        ConfigError: If there is no angle, or one is repeated.
    """
    names = [f"{angle:g}" for angle in angles]
    if not names:
        raise ConfigError("dataset.angles", "[]", "must contain at least 1 angle, one per domain")
    if len(set(names)) < len(names):
        raise ConfigError("dataset.angles", list(angles), "must not contain an angle twice")
    return names
