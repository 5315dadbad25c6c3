"""What holds for every domain, split and stream."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fishr_exp.data.datasets.coloring import colored_domain
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.minibatches import Minibatches, chunks, loader
from fishr_exp.data.splits import split

seeds = st.integers(-(2**40), 2**40)
names = st.text(min_size=1, max_size=8)


def numbered(name, count):
    return TensorDomain(name, torch.zeros(count, 1), torch.arange(count))


@given(names, st.integers(0, 60), st.floats(0, 1, exclude_max=True), seeds)
def test_a_split_is_a_partition_in_ascending_order(name, count, fraction, seed):
    parts = split(numbered(name, count), fraction, seed)
    assert len(parts.validation) == int(fraction * count)
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())


@given(names, st.integers(2, 30), st.data(), seeds)
def test_any_minibatch_can_be_had_without_those_before_it(name, count, data, seed):
    batch_size = data.draw(st.one_of(st.none(), st.integers(2, count)))
    start = data.draw(st.integers(0, 40))
    whole = Minibatches(numbered(name, count), torch.arange(count), batch_size, seed)
    resumed = Minibatches(numbered(name, count), torch.arange(count), batch_size, seed)
    expected = [whole[k].y.tolist() for k in range(start + 5)][start:]
    assert [m.y.tolist() for m in loader(resumed, start, start + 5)] == expected


@given(st.integers(2, 30), st.data(), seeds)
def test_every_pass_shows_as_many_different_samples_as_it_can(count, data, seed):
    batch_size = data.draw(st.integers(2, count))
    number = data.draw(st.integers(0, 5))
    stream = Minibatches(numbered("some", count), torch.arange(count), batch_size, seed)
    first = number * stream.per_pass
    shown = torch.cat([stream[first + i].y for i in range(stream.per_pass)]).tolist()
    assert len(shown) == len(set(shown)) == count - count % batch_size


@given(st.integers(0, 30), st.integers(1, 40))
def test_chunks_together_are_the_part(count, size):
    read = [m.y for m in chunks(numbered("some", count), torch.arange(count), size)]
    assert all(0 < len(y) <= size for y in read)
    assert torch.cat([torch.arange(0), *read]).tolist() == list(range(count))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1), seeds
)
def test_coloring_keeps_the_image_in_one_channel(digits, flip, noise, seed):
    images = torch.rand(len(digits), 3, 3) + 0.1
    domain = colored_domain(
        "some", images, torch.tensor(digits), color_flip=flip, label_noise=noise, seed=seed
    )
    x, y = domain.read(torch.arange(len(digits)))
    assert torch.equal(x.sum(1), images)
    assert ((x.sum((2, 3)) > 0).sum(1) == 1).all()
    assert set(y.tolist()) <= {0, 1}
