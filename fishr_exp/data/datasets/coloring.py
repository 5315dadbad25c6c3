"""Digits colored so that the color predicts the label, by a rate that differs by domain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.seeding import generator
from fishr_exp.data.datasets.tensors import TensorDomain


def colored_domain(
    name: str, images: Tensor, digits: Tensor, *, color_flip: float, label_noise: float, seed: int
) -> TensorDomain:
    """Build a domain whose images are red or green, and whose labels say if a digit is under 5.

    The label is 1 for digits 0 to 4 and is flipped with probability `label_noise`. The color is
    the label, noise and all, flipped with probability `color_flip`; of the two channels only the
    one whose index is the color keeps the image.

    Args:
        name: The domain's name, which is also the name of its random streams.
        images: Gray images [N, H, W].
        digits: What they show [N], 0 to 9.
        color_flip: In [0, 1]; the color alone predicts the label with 1 − `color_flip`.
        label_noise: In [0, 1].
        seed: The seed of the dataset.

    Raises:
        ConfigError: If `label_noise` is no probability.

    Source:
        Arjovsky et al. 2019 (arXiv:1907.02893), section 5.2.
    """
    labels = noisy_labels(name, digits, label_noise=label_noise, seed=seed)  # [N]
    colors = labels ^ _bernoulli(color_flip, len(labels), seed, name, "colour")  # [N]; the name of a stream is fixed
    x = images.new_zeros(len(images), 2, *images.shape[1:])  # [N, 2, H, W]
    x[torch.arange(len(images)), colors] = images
    return TensorDomain(name, x, labels)


def dealt_out(
    images: Tensor, digits: Tensor, flips: Mapping[str, float], *, label_noise: float, seed: int
) -> dict[str, TensorDomain]:
    """Build a colored domain for each of `flips`, by name; domain i takes every E-th original.

    Args:
        images: Gray images [N, H, W], in the order in which they are dealt out.
        digits: What they show [N], 0 to 9.
        flips: For each of the E domains, the `color_flip` of `colored_domain`.
        label_noise: In [0, 1].
        seed: The seed of the dataset.
    """
    return {
        name: colored_domain(
            name,
            images[i :: len(flips)],
            digits[i :: len(flips)],
            color_flip=flip,
            label_noise=label_noise,
            seed=seed,
        )
        for i, (name, flip) in enumerate(flips.items())
    }


def gray_domain(
    name: str, images: Tensor, digits: Tensor, *, label_noise: float, seed: int
) -> TensorDomain:
    """Build a domain whose two channels are the same, so that there is no color to learn from.

    The arguments are those of `colored_domain`; the label noise is drawn anew for each name.
    """
    labels = noisy_labels(name, digits, label_noise=label_noise, seed=seed)
    return TensorDomain(name, torch.stack([images, images], dim=1), labels)


def noisy_labels(name: str, digits: Tensor, *, label_noise: float, seed: int) -> Tensor:
    """Return 1 for digits under 5 and 0 for others ([N], int64), each flipped by `label_noise`."""
    if not 0 <= label_noise <= 1:
        raise ConfigError("dataset.label_noise", label_noise, "a probability in [0, 1] is allowed")
    return (digits < 5).long() ^ _bernoulli(label_noise, len(digits), seed, name, "label_noise")


def _bernoulli(probability: float, count: int, seed: int, *purpose: str) -> Tensor:
    draws = torch.rand(count, generator=generator(seed, "dataset", *purpose))
    return (draws < probability).long()
