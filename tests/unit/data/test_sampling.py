"""Minibatches drawn with replacement, or class by class: pure, right in frequency, refused."""

from __future__ import annotations

import copy

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.data.batch_sizes import batch_size_of, check_named
from fishr_exp.data.datasets.tensors import TensorDomain
from fishr_exp.data.datasets.torch_dataset import DatasetDomain
from fishr_exp.data.minibatches import Minibatches, loader

from .test_minibatches import Noisy, same

DRAWN = ("with_replacement", "class_balanced")


def domain(count: int = 23, rare: int = 3) -> TensorDomain:
    """Samples that hold their index; the first `rare` ones are of class 1, the rest of class 0."""
    x = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    return TensorDomain("memory", x, (torch.arange(count) < rare).long())


def stream(sampling: str, batch_size=5, of=None, indices=None, seed=0, shard=(0, 1)) -> Minibatches:
    of = of or domain()
    indices = torch.arange(len(of)) if indices is None else indices
    return Minibatches(of, indices, batch_size, seed, shard, sampling)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", DRAWN)
def test_a_minibatch_depends_on_nothing_but_seed_name_and_number(sampling: str) -> None:
    one, other = stream(sampling), stream(sampling)
    later = [one[k] for k in (7, 3, 5)]
    assert same(later, [other[k] for k in (7, 3, 5)])
    assert not same([one[7]], [one[8]])
    assert not same([one[7]], [stream(sampling, seed=1)[7]])
    renamed = domain()
    renamed.name = "another"
    assert not same([one[7]], [stream(sampling, of=renamed)[7]])


@pytest.mark.parametrize("sampling", DRAWN)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_from_any_start(sampling: str, num_workers: int) -> None:
    minibatches = stream(sampling)
    whole = [minibatches[k] for k in range(8)]
    assert same(loader(copy.copy(minibatches), 3, 8, num_workers=num_workers), whole[3:])


def test_with_replacement_each_sample_of_the_part_is_drawn_alike() -> None:
    part = torch.tensor([3, 5, 7, 11])
    minibatches = stream("with_replacement", 10, indices=part)
    drawn = torch.cat([minibatches[k].x.flatten() for k in range(400)])
    counts = {int(v): int(c) for v, c in zip(*drawn.unique(return_counts=True), strict=True)}
    assert counts.keys() == {3, 5, 7, 11}
    # 4000 draws: 1000 each, with a standard deviation of 27
    assert all(abs(count - 1000) < 5 * 27 for count in counts.values())
    assert minibatches.per_pass == 0


def test_balanced_classes_are_drawn_alike_and_their_samples_too() -> None:
    minibatches = stream("class_balanced", 10)
    drawn = [minibatches[k] for k in range(400)]
    labels = torch.cat([m.y for m in drawn])
    assert abs(int(labels.sum()) - 2000) < 5 * 32
    samples = torch.cat([m.x.flatten() for m in drawn]).long()
    counts = samples.bincount(minlength=23)
    assert (counts > 0).all()
    assert ((counts[:3] - 667).abs() < 5 * 24).all()  # the three of the rare class
    assert ((counts[3:] - 100).abs() < 5 * 10).all()


def test_a_class_without_a_sample_in_the_part_is_not_drawn() -> None:
    minibatches = stream("class_balanced", 4, indices=torch.arange(3, 23))
    assert not torch.cat([minibatches[k].y for k in range(20)]).any()


@pytest.mark.parametrize("sampling", DRAWN)
def test_processes_share_the_minibatches_of_one(sampling: str) -> None:
    whole = stream(sampling, 9)
    shards = [stream(sampling, 9, shard=(rank, 2)) for rank in range(2)]
    for k in range(5):
        assert torch.equal(torch.cat([s[k].x for s in shards]), whole[k].x)


@pytest.mark.parametrize("sampling", DRAWN)
def test_a_whole_domain_is_not_drawn(sampling: str) -> None:
    said = f"sampling={sampling}: a minibatch of domain memory is the whole domain: nothing is dr"
    with pytest.raises(ConfigError, match=said):
        stream(sampling, None)


def test_a_small_domain_is_told_how_it_can_fill_a_minibatch() -> None:
    with pytest.raises(
        ConfigError, match=r"null for the whole domain, or sampling=with_replacement"
    ):
        stream("permutation", 24)
    assert len(stream("with_replacement", 24)[0].y) == 24


def test_labels_must_be_at_hand() -> None:
    with pytest.raises(
        ConfigError, match=r"sampling=class_balanced: domain noisy does not say its"
    ):
        stream("class_balanced", of=Noisy())
    dataset = torch.utils.data.TensorDataset(torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 0, 1]))
    minibatches = stream("class_balanced", 4, of=DatasetDomain("torch", dataset))
    assert torch.cat([minibatches[k].y for k in range(9)]).sum() > 9


def test_sizes_by_domain() -> None:
    sizes = {"a": 4, "b": None}
    assert (batch_size_of(sizes, "a"), batch_size_of(sizes, "b"), batch_size_of(7, "a")) == (
        4,
        None,
        7,
    )
    check_named({"a": 4, "b": 5}, ["a", "b", "c"], ["a"])
    check_named(5, ["a"], ["a"])
    with pytest.raises(
        ConfigError, match=r"batch_size=\{z: 4\}: there is no domain z; choose from a"
    ):
        check_named({"z": 4}, ["a", "b"], ["a"])
    with pytest.raises(ConfigError, match=r"has no size for the training domain b; add b: NUMBER"):
        check_named({"a": 4}, ["a", "b"], ["a", "b"])
