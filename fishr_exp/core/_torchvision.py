"""The only place that imports torchvision: `from fishr_exp.core._torchvision import torchvision`.

A torchvision built for CUDA cannot load its compiled operators beside a torch built for the CPU,
and its import then fails because it decorates operators that are not declared. Only the Python
parts are used here (datasets, transforms, models), so the schemas of those operators are enough.
"""

from __future__ import annotations

import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    # Kept for the lifetime of the process: the schemas disappear with this object.
    _SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        _SCHEMAS.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # Modules left by the failed import would lack their link to the package.
    for _module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_module]
    import torchvision

import torchvision.transforms.v2

__all__ = ["torchvision"]
