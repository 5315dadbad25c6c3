"""Small layers in closed form have the bits of the slow way: moments, and autograd through them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fishr_exp.gradient_variance import squared_distance, squared_distance_with_gradient
from fishr_exp.gradient_variance.terms.moments import moments_of_terms
from fishr_exp.gradient_variance.terms.outer import of_vectors
from fishr_exp.gradient_variance.terms.small import small
from fishr_exp.gradient_variance.terms.uses import Direct, Outer, Term

LIMIT = 2**25
SIZES = [(64, 64, 64), (64, 64), (15, 14, 14, 19), (17,), (300, 300)]


def _assert_same_bits(term: Term, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    slow = moments_of_terms([term], torch.Size(shape), sizes, LIMIT).variance
    wanted = [t for t in term.inputs if t.requires_grad]
    expected = torch.autograd.grad(squared_distance(slow), wanted)
    found = small([term], sizes, LIMIT)
    assert found is not None
    assert torch.equal(found.variance.reshape(slow.shape), slow)
    _, gradient = squared_distance_with_gradient(found.variance)
    ours = [g for g in found.pull_back(gradient) if g is not None]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert max(float(g.abs().max()) for g in ours) > 0 or len(sizes) == 1


def _draw(n: int, *shape: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    return torch.randn(n, *shape, dtype=dtype).requires_grad_(grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 12])
def test_products_of_vectors(rows: int, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for columns in (1, 5, 33, 65):
        left = _draw(sum(sizes), rows, dtype=dtype)
        for grad in (True, False):
            right = _draw(sum(sizes), columns, dtype=dtype, grad=grad)
            _assert_same_bits(Outer(of_vectors, (left, right)), sizes, (rows, columns))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (33,), (3, 4)], ids=str)
def test_gradients_that_are_given(
    shape: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    _assert_same_bits(Direct(_draw(sum(sizes), *shape, dtype=dtype)), sizes, shape)


def test_what_is_large_or_inexact_is_left_to_the_general_way() -> None:
    left, right = _draw(8, 3, dtype=torch.float32), _draw(8, 5, dtype=torch.float32)
    assert small([Outer(of_vectors, (left, right))], (4, 4), 59) is None
    assert small([Outer(of_vectors, (left, right))], (4, 4), 60) is not None
    assert small([Direct(left), Direct(left)], (4, 4), LIMIT) is None
    nearly_constant = 1 + 1e-3 * torch.randn(8, 12)
    assert small([Outer(of_vectors, (nearly_constant, torch.ones(8, 5)))], (4, 4), LIMIT) is None


def test_the_workspace_of_one_call_does_not_change_the_results_of_another() -> None:
    torch.manual_seed(0)
    terms = [Outer(of_vectors, (_draw(8, 3, dtype=torch.float32), _draw(8, 5, dtype=torch.float32)))
             for _ in range(2)]  # fmt: skip
    first = small(terms[:1], (4, 4), LIMIT)
    assert first is not None
    kept = first.variance.clone()
    gradients = [g.clone() for g in first.pull_back(kept) if g is not None]
    second = small(terms[1:], (4, 4), LIMIT)
    assert second is not None
    second.pull_back(second.variance)
    assert torch.equal(first.variance, kept)
    again = [g for g in first.pull_back(kept) if g is not None]
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))
