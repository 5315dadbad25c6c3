"""Minibatches of images on a device, which changes the colors itself, are the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fishr_exp.data.datasets.image_folder import image_folder
from fishr_exp.data.minibatches import Minibatches, chunks, loader

LEVEL = 1 / (255 * 0.225)  # of 256, after the normalization


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_minibatches(device: torch.device, num_workers: int, images: Path) -> None:
    domains = image_folder(root=str(images), name="tiny", image_size=24, augment=True)
    for domain in domains.by_name.values():
        stream = Minibatches(domain, torch.arange(len(domain)), 8, 0)
        read = [
            [*loader(stream, 0, 3, num_workers=num_workers, pin_memory=pin)]
            for pin in (False, True)
        ]
        for here, found in zip(*read, strict=True):
            there = found.to(device)
            assert there.x.device.type == device.type
            assert there.x.dtype == torch.float32
            assert torch.equal(there.y.cpu(), here.y)
            away = (there.x.cpu() - here.x).abs()
            assert away.max() < 4 * LEVEL  # a product may round to the other side, several times
            assert away.mean() < 0.05 * LEVEL


def test_what_is_evaluated(device: torch.device, images: Path) -> None:
    domains = image_folder(root=str(images), name="tiny", image_size=24, augment=True)
    domain = next(iter(domains.by_name.values()))
    every = torch.arange(len(domain))
    read = [[*chunks(domain, every, 5, num_workers=1, pin_memory=pin)] for pin in (False, True)]
    for here, found in zip(*read, strict=True):
        torch.testing.assert_close(found.to(device).x.cpu(), here.x, rtol=0, atol=1e-5)
