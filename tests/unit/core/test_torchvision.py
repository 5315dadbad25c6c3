"""torchvision imports wherever its Python parts can work."""

from __future__ import annotations

import subprocess
import sys

import torch

from fishr_exp.core._torchvision import torchvision

BROKEN_BUILD = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("another fault altogether")
sys.meta_path.insert(0, Refuse())
import fishr_exp.core._torchvision
"""

OPERATORS_PRESENT = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
from fishr_exp.core import _torchvision as vision
assert vision.torchvision is torchvision
assert not hasattr(vision, "_SCHEMAS")
"""


def test_nothing_is_declared_where_the_operators_are_present():
    subprocess.run([sys.executable, "-c", OPERATORS_PRESENT], check=True)


def test_the_parts_in_use_are_there():
    image = torch.zeros(3, 8, 8)
    assert torchvision.transforms.v2.functional.rotate(image, 15.0).shape == image.shape
    assert torchvision.models.resnet18 is not None
    assert torchvision.datasets.MNIST is not None


def test_a_later_plain_import_gives_the_same_package():
    import torchvision as plain

    assert plain is torchvision
    assert plain.extension is sys.modules["torchvision.extension"]


def test_other_faults_of_the_import_are_not_hidden():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_BUILD], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "another fault altogether" in done.stderr
