"""scikit-learn's 8×8 digits, colored or rotated: 1,797 scans of handwriting, no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fishr_exp.core.contracts import Domains
from fishr_exp.core.seeding import generator
from fishr_exp.data.datasets import coloring, rotation

_COLOR_FLIPS = {"plus90": 0.1, "plus80": 0.2, "minus90": 0.9}
_FILE = Path("datasets", "data", "digits.csv.gz")  # in scikit-learn's folder


def colored_digits(*, seed: int, label_noise: float = 0.25) -> Domains:
    """Build Colored MNIST's construction on scikit-learn's digits.

    Each of the three domains has a random third of the originals, so that no original is in two
    domains. In `plus90` and `plus80` the color agrees with the label with
    probability 0.9 and 0.8, in `minus90` with 0.1.

    Args:
        seed: Determines the domain of each original, the label noise and the colors.
        label_noise: Probability that a label is flipped, in [0, 1].

    Returns:
        Three domains of 599 images [2, 8, 8] in [0, 1], two classes.

    Raises:
        ConfigError: If `label_noise` is not a probability.

    Source:
        Arjovsky et al. 2019 (arXiv:1907.02893), section 5.2, for the construction.
    """
    images, digits = _originals(seed)
    by_name = coloring.colored_domains(
        images, digits, _COLOR_FLIPS, label_noise=label_noise, seed=seed
    )
    return Domains("colored_digits", by_name, 2, (2, 8, 8), class_names=coloring.CLASSES)


def rotated_digits(*, seed: int, angles: Sequence[float]) -> Domains:
    """Build a domain for each angle, of scikit-learn's digits rotated by that angle.

    The originals are distributed at random, so that no original is in two domains.

    Args:
        seed: Determines the domain of each original.
        angles: Degrees, counter-clockwise; a domain's name is its angle.

    Returns:
        Domains of 1,797 / `len(angles)` images [1, 8, 8] in [0, 1], ten classes.

    Raises:
        ConfigError: If there is no angle, or one is repeated.
    """
    images, digits = _originals(seed)
    by_name = rotation.rotated_domains(images, digits, angles)
    return Domains("rotated_digits", by_name, 10, (1, 8, 8), class_names=tuple("0123456789"))


def _originals(seed: int) -> tuple[Tensor, Tensor]:
    """Return the images [1797, 8, 8] in [0, 1] and their digits [1797], in the seed's order."""
    rows = _rows()
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 8, 8).astype(np.float32) / 16)
    digits = torch.from_numpy(rows[:, -1].astype(np.int64))
    order = torch.randperm(len(digits), generator=generator(seed, "dataset", "originals"))
    return images[order], digits[order]


def _rows() -> np.ndarray:
    """Return scikit-learn's table [1797, 65]: 64 pixels of 17 levels, 0 to 16, and the digit.

    It is read without importing scikit-learn, which takes as long as training on it; by
    scikit-learn itself where a version of it keeps the file elsewhere.
    """
    found = importlib.util.find_spec("sklearn")  # imports nothing
    for folder in (found and found.submodule_search_locations) or ():
        if (file := Path(folder, _FILE)).is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
