"""Digits whose color predicts the label, with a probability that differs by domain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fishr_exp.core.errors import ConfigError
from fishr_exp.core.seeding import generator
from fishr_exp.data.datasets.tensors import TensorDomain

CLASSES = ("5 to 9", "0 to 4")


def colored_domain(
    name: str, images: Tensor, digits: Tensor, *, color_flip: float, label_noise: float, seed: int
) -> TensorDomain:
    """Build a domain whose images are red or green, and whose labels are 1 for digits under 5.

    The label is 1 for digits 0 to 4 and is flipped with probability `label_noise`. The color is
    the noisy label, flipped with probability `color_flip`; the image is in the channel whose index
    is the color, and the other channel is zero.

    Args:
        name: The domain's name, which is also the name of its random streams.
        images: Gray images [N, H, W].
        digits: The digits that they show [N], 0 to 9.
        color_flip: In [0, 1]; the color predicts the label with probability 1 − `color_flip`.
        label_noise: In [0, 1].
        seed: The seed of the dataset.

    Raises:
        ConfigError: If `label_noise` is not a probability.

    Source:
        Arjovsky et al. 2019 (arXiv:1907.02893), section 5.2.
    """
    labels = noisy_labels(name, digits, label_noise=label_noise, seed=seed)  # [N]
    # The name of the stream keeps its spelling: it determines the draws.
    colors = labels ^ _bernoulli(color_flip, len(labels), seed, name, "colour")  # [N]
    x = images.new_zeros(len(images), 2, *images.shape[1:])  # [N, 2, H, W]
    x[torch.arange(len(images)), colors] = images
    return TensorDomain(name, x, labels)


def colored_domains(
    images: Tensor, digits: Tensor, flips: Mapping[str, float], *, label_noise: float, seed: int
) -> dict[str, TensorDomain]:
    """Build a colored domain for each of `flips`, by name; domain i takes every E-th original.

    Args:
        images: Gray images [N, H, W], in the order in which they are distributed.
        digits: The digits that they show [N], 0 to 9.
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
    """Build a domain whose two channels are the same, so that color carries no information.

    The arguments are those of `colored_domain`; each name has its own label noise.
    """
    labels = noisy_labels(name, digits, label_noise=label_noise, seed=seed)
    return TensorDomain(name, torch.stack([images, images], dim=1), labels)


def noisy_labels(name: str, digits: Tensor, *, label_noise: float, seed: int) -> Tensor:
    """Return 1 for digits under 5 and 0 for others ([N], int64), each flipped by `label_noise`."""
    if not 0 <= label_noise <= 1:
        raise ConfigError("dataset.label_noise", label_noise, "must be a probability in [0, 1]")
    return (digits < 5).long() ^ _bernoulli(label_noise, len(digits), seed, name, "label_noise")


def _bernoulli(probability: float, count: int, seed: int, *purpose: str) -> Tensor:
    draws = torch.rand(count, generator=generator(seed, "dataset", *purpose))
    return (draws < probability).long()
