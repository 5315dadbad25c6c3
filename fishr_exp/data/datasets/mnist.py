"""MNIST, colored or rotated: the settings of IRM's script and of DomainBed.

The two colored settings are different experiments, with different image sizes, originals per domain
and test domains. Their results cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fishr_exp.core._torchvision import torchvision
from fishr_exp.core.contracts import Domains
from fishr_exp.core.errors import ConfigError
from fishr_exp.core.files import expanded
from fishr_exp.core.seeding import generator
from fishr_exp.data.datasets import coloring, rotation

_SIZES = {True: 60_000, False: 10_000}  # images in the training and in the test file
_IRM_TEST = 10_000  # the last images of the training file
_IRM_FLIPS = {"plus80": 0.2, "plus90": 0.1}
_IRM_TEST_FLIP = 0.9
_DOMAINBED_FLIPS = {"plus90": 0.1, "plus80": 0.2, "minus90": 0.9}


def colored_mnist(*, root: str, download: bool, seed: int, label_noise: float = 0.25) -> Domains:
    """Build Colored MNIST as in the IRM setup, from MNIST's training file alone.

    Its first 50,000 images are shuffled; those at even positions are `plus80`, those at odd
    positions `plus90`. Its last 10,000 are `minus90`, and also `gray`, with both channels
    kept and with its own label noise, so that the labels of the two differ. Images are reduced
    to 14×14 by taking every second pixel.

    Args:
        root: The folder that contains MNIST/raw.
        download: Download missing files into `root`.
        seed: Determines the order, the label noise and the colors.
        label_noise: Probability that a label is flipped, in [0, 1].

    Returns:
        Domains of 25,000, 25,000, 10,000 and 10,000 images [2, 14, 14] in [0, 1], two classes.

    Raises:
        ConfigError: If the files are missing or damaged, or `label_noise` is not a probability.

    Source:
        Arjovsky et al. 2019 (arXiv:1907.02893), section 5.2, and their script; Ramé et al. 2022
        (arXiv:2109.02934) use the same.
    """
    images, digits = _read(root, train=True, download=download)
    return _irm_setup(images, digits, test=_IRM_TEST, seed=seed, label_noise=label_noise)


def colored_mnist_domainbed(
    *, root: str, download: bool, seed: int, label_noise: float = 0.25
) -> Domains:
    """Build ColoredMNIST as in DomainBed, from MNIST's training and test files together.

    The 70,000 images are shuffled, and domain i takes every third from the i-th on. In `plus90`,
    `plus80` and `minus90` the color agrees with the label with probability 0.9, 0.8 and 0.1.

    Args:
        root: The folder that contains MNIST/raw.
        download: Download missing files into `root`.
        seed: Determines the order, the label noise and the colors.
        label_noise: Probability that a label is flipped, in [0, 1].

    Returns:
        Three domains of about 23,333 images [2, 28, 28] in [0, 1], two classes.

    Raises:
        ConfigError: If the files are missing or damaged, or `label_noise` is not a probability.

    Source:
        Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code.
    """
    images, digits = _shuffled_70k(root, download, seed)
    by_name = coloring.colored_domains(
        images, digits, _DOMAINBED_FLIPS, label_noise=label_noise, seed=seed
    )
    shape = (2, *images.shape[1:])
    names = coloring.CLASSES
    return Domains("colored_mnist_domainbed", by_name, 2, shape, class_names=names)


def rotated_mnist(*, root: str, download: bool, seed: int, angles: Sequence[float]) -> Domains:
    """Build RotatedMNIST as in DomainBed, from MNIST's training and test files together.

    The 70,000 images are shuffled, domain i takes every E-th from the i-th on, E being the number
    of angles, and rotates them.

    Args:
        root: The folder that contains MNIST/raw.
        download: Download missing files into `root`.
        seed: Determines the order.
        angles: Degrees, counter-clockwise; a domain's name is its angle.

    Returns:
        Domains of 70,000 / E images [1, 28, 28] in [0, 1], ten classes.

    Raises:
        ConfigError: If the files are missing or damaged, there is no angle, or one is repeated.

    Source:
        Ghifary et al. 2015 (arXiv:1508.07680) for the idea; Gulrajani and Lopez-Paz 2021
        (arXiv:2007.01434) and their code for this form.
    """
    images, digits = _shuffled_70k(root, download, seed)
    by_name = rotation.rotated_domains(images, digits, angles)
    shape = (1, *images.shape[1:])
    return Domains("rotated_mnist", by_name, 10, shape, class_names=tuple("0123456789"))


def _irm_setup(
    images: Tensor, digits: Tensor, *, test: int, seed: int, label_noise: float
) -> Domains:
    """Build the IRM setup from images [N, H, W] of which the last `test` are for testing."""
    small = images[:, ::2, ::2]
    first = len(small) - test
    order = torch.randperm(first, generator=generator(seed, "dataset", "originals"))
    by_name = coloring.colored_domains(
        small[order], digits[order], _IRM_FLIPS, label_noise=label_noise, seed=seed
    )
    by_name["minus90"] = coloring.colored_domain(
        "minus90",
        small[first:],
        digits[first:],
        color_flip=_IRM_TEST_FLIP,
        label_noise=label_noise,
        seed=seed,
    )
    by_name["gray"] = coloring.gray_domain(
        "gray", small[first:], digits[first:], label_noise=label_noise, seed=seed
    )
    shape = (2, *small.shape[1:])
    return Domains("colored_mnist", by_name, 2, shape, class_names=coloring.CLASSES)


def _shuffled_70k(root: str, download: bool, seed: int) -> tuple[Tensor, Tensor]:
    files = [_read(root, train=train, download=download) for train in (True, False)]
    images, digits = (torch.cat(parts) for parts in zip(*files, strict=True))
    order = torch.randperm(len(digits), generator=generator(seed, "dataset", "originals"))
    return images[order], digits[order]


def _read(root: str, *, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Return the images [N, 28, 28], uint8, and digits [N], int64, of one of MNIST's two files."""
    folder = expanded(root)
    try:
        mnist = torchvision.datasets.MNIST(str(folder), train=train, download=download)
    except Exception as error:  # a damaged file raises almost anything
        fault = (str(error) or type(error).__name__).splitlines()[0]
        raise _cannot_read(root, download, fault) from error
    images, digits, expected = len(mnist.data), len(mnist.targets), _SIZES[train]
    if (images, digits) != (expected, expected):
        raise _damaged(root, f"{images} images and {digits} labels instead of {expected}")
    if mnist.data.shape[1:] != (28, 28) or not 0 <= mnist.targets.min() <= mnist.targets.max() <= 9:
        raise _damaged(root, "it has images that are not 28x28, or labels other than 0 to 9")
    return mnist.data, mnist.targets


def _cannot_read(root: str, download: bool, fault: str) -> ConfigError:
    if "Dataset not found" in fault:
        return ConfigError(
            "dataset.root",
            root,
            "does not contain MNIST/raw with MNIST's four unpacked files",
            "pass dataset.download=true, or the folder that contains them",
        )
    if download:
        return ConfigError(
            "dataset.download",
            "true",
            f"MNIST cannot be downloaded to {root}, or read there ({fault})",
            "check the network and the folder, or pass a dataset.root that contains MNIST/raw",
        )
    return _damaged(root, fault)


def _damaged(root: str, fault: str) -> ConfigError:
    return ConfigError(
        "dataset.root",
        root,
        f"its MNIST/raw is damaged ({fault})",
        "download the files again with dataset.download=true into an empty folder",
    )
