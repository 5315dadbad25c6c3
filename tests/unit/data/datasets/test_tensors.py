"""A domain in memory."""

from __future__ import annotations

import torch

from fishr_exp.data.datasets.tensors import TensorDomain


def domain(dtype):
    x = torch.arange(6 * 4).reshape(6, 1, 2, 2).to(dtype)
    return TensorDomain("some", x, torch.arange(6)), x


def test_bytes_are_read_as_fractions_of_255():
    some, x = domain(torch.uint8)
    read = some.read(torch.tensor([4, 1]))
    assert read.x.dtype == torch.float32
    assert torch.equal(read.x, x[[4, 1]].float() / 255)
    assert read.y.tolist() == [4, 1]


def test_floats_are_read_as_they_are():
    some, x = domain(torch.float32)
    read = some.read(torch.tensor([5, 5, 0]))
    assert torch.equal(read.x, x[[5, 5, 0]])
    assert read.y.tolist() == [5, 5, 0]


def test_the_whole_domain_in_order_is_not_copied():
    some, x = domain(torch.float32)
    assert some.read(torch.arange(6)).x.data_ptr() == x.data_ptr()


def test_the_whole_domain_in_another_order_is_in_that_order():
    some, _ = domain(torch.float32)
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    assert some.read(order).y.tolist() == order.tolist()


def test_an_augmentation_stream_changes_nothing():
    some, _ = domain(torch.uint8)
    indices = torch.tensor([2, 3])
    plain = some.read(indices)
    augmented = some.read(indices, torch.Generator().manual_seed(1))
    assert torch.equal(plain.x, augmented.x)


def test_reading_leaves_the_bytes_untouched():
    some, _ = domain(torch.uint8)
    first = some.read(torch.arange(6)).x
    assert torch.equal(first, some.read(torch.arange(6)).x)
