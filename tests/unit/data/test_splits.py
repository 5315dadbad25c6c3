"""The split of a domain."""

from __future__ import annotations

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.datasets.digits import colored_digits
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.splits import limited, split


def domain(name, count):
    return TensorDomain(name, torch.zeros(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(("count", "fraction", "held"), [(599, 0.2, 119), (5, 0.5, 2), (3, 0.0, 0)])
def test_validation_is_the_floor_of_its_fraction(count, fraction, held):
    parts = split(domain("some", count), fraction, seed=0)
    assert len(parts.validation) == held
    assert sorted(torch.cat(parts).tolist()) == list(range(count))


def test_nothing_held_out_leaves_the_domain_in_order():
    assert torch.equal(split(domain("some", 7), 0, seed=0).train, torch.arange(7))


def test_only_seed_and_name_decide():
    reference = split(domain("some", 50), 0.2, seed=0)
    torch.rand(3)
    other_data = colored_digits(seed=3).by_name["plus90"]
    again = split(domain("some", 50), 0.2, seed=0)
    assert torch.equal(reference.validation, again.validation)
    assert not torch.equal(
        reference.validation, split(domain("another", 50), 0.2, seed=0).validation
    )
    assert not torch.equal(reference.validation, split(domain("some", 50), 0.2, seed=1).validation)
    same_size = domain("plus90", len(other_data))
    assert torch.equal(split(other_data, 0.2, 0).train, split(same_size, 0.2, 0).train)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_out_of_range_names_its_key(fraction):
    with pytest.raises(ConfigError, match="holdout_fraction="):
        split(domain("some", 5), fraction, seed=0)


def test_a_limit_leaves_so_many_of_each_part_and_fewer_are_among_more():
    whole = split(domain("some", 100), 0.3, seed=0)
    one, other = (limited(whole, n, 0, "some") for n in (10, 20))
    for few, more, part in zip(one, other, whole, strict=True):
        assert (len(few), len(more)) == (10, 20)
        assert set(few.tolist()) < set(more.tolist()) < set(part.tolist())
        assert torch.equal(few, few.sort().values)
    assert not torch.equal(one.train, limited(whole, 10, 1, "some").train)
    assert not torch.equal(one.train, whole.train[:10])


def test_a_limit_above_the_size_leaves_all():
    whole = split(domain("some", 10), 0.3, seed=0)
    for limit in (None, 7, 100):
        parts = limited(whole, limit, 0, "some")
        assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
