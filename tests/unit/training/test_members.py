"""Means of weights, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fishr_exp.core.errors import ConfigError
from fishr_exp.training.members import Mean, Member, check_alike


def state(value: float, count: int) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.tensor([value, -value]),
        "half": torch.tensor([value]).bfloat16(),
        "num_batches_tracked": torch.tensor(count),
    }


def test_a_mean_of_weights() -> None:
    """In float64; counters are those of the first."""
    mean = Mean()
    for number, value in enumerate((0.1, 0.2, 0.6)):
        mean = mean.with_another(state(value, number))
    got = mean.state_dict()
    assert torch.equal(got["weight"], torch.tensor([0.3, -0.3]))
    assert got["half"].dtype == torch.bfloat16
    assert got["num_batches_tracked"] == 0
    assert list(got) == ["weight", "half", "num_batches_tracked"]


def test_a_candidate_leaves_the_mean_as_it_is() -> None:
    one = Mean().with_another(state(0.5, 3))
    two = one.with_another(state(1.5, 4))
    assert (one.count, two.count) == (1, 2)
    assert torch.equal(one.state_dict()["weight"], torch.tensor([0.5, -0.5]))
    assert torch.equal(two.state_dict()["weight"], torch.tensor([1.0, -1.0]))


def test_the_mean_of_equal_weights_is_these_weights() -> None:
    value = torch.rand(1000)
    mean = Mean()
    for _ in range(60):
        mean = mean.with_another({"weight": value})
    assert torch.equal(mean.state_dict()["weight"], value)


def member(**model: Any) -> Member:
    config = {"model": {"_target_": "fishr_exp.models.backbone.resnet18", **model}, "seed": 0}
    run: Any = SimpleNamespace(
        path=Path("run"), config=config, dataset="pacs", test_domains=("sketch",)
    )
    return Member(run, arguments=SimpleNamespace(), weights=Path("best.pt"), digest="")  # type: ignore[arg-type]


def test_runs_of_one_network_may_differ_in_dropout_and_in_where_its_start_lies() -> None:
    one = member(dropout=0.0, pretrained=True, weights_file=None, freeze_bn=True)
    other = member(dropout=0.5, pretrained=False, weights_file="start.pt", freeze_bn=True)
    check_alike([one, other])
    with pytest.raises(ConfigError, match=r"has model\.freeze_bn False, and run True"):
        check_alike([one, member(dropout=0.0, freeze_bn=False)])
