"""Sparse tensors taken apart and put together, in all layouts, and on trial in `check_function`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck import Status, check_function
from torch_gradcheck.objective.sparse_arguments import (
    SparseFromValues,
    densified,
    is_sparse,
    places_of,
    values_of,
    with_values,
)

DENSE = torch.tensor(
    [[1.0, 0, 2, 0], [0, 3, 0, 0], [0, 0, 0, 4], [5, 0, 6, 0]],
    dtype=torch.float64,
)

LAYOUTS: dict[str, dict[str, Any]] = {
    "coo": {"layout": torch.sparse_coo},
    "csr": {"layout": torch.sparse_csr},
    "csc": {"layout": torch.sparse_csc},
    "bsr": {"layout": torch.sparse_bsr, "blocksize": (2, 2)},
    "bsc": {"layout": torch.sparse_bsc, "blocksize": (2, 2)},
}

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def sparse(layout: dict[str, Any]) -> Tensor:
    return DENSE.to_sparse(**layout)


@each_layout
def test_values_are_at_their_places(layout: dict[str, Any]) -> None:
    tensor = sparse(layout)
    assert is_sparse(tensor)
    assert torch.equal(DENSE.reshape(-1)[places_of(tensor)], values_of(tensor).reshape(-1))


@each_layout
def test_other_values_go_to_the_same_places(layout: dict[str, Any]) -> None:
    tensor = sparse(layout)
    doubled = with_values(tensor, 2 * values_of(tensor))
    assert doubled.layout is tensor.layout
    assert torch.equal(doubled.to_dense(), 2 * DENSE)


@each_layout
def test_every_entry_of_a_densified_tensor_is_specified(layout: dict[str, Any]) -> None:
    full = densified(sparse(layout))
    assert full.layout is layout["layout"]
    assert values_of(full).numel() == DENSE.numel()
    assert torch.equal(full.to_dense(), DENSE)


def test_a_place_may_be_given_twice_and_have_dense_dimensions() -> None:
    tensor = torch.sparse_coo_tensor(torch.tensor([[1, 1, 0]]), torch.arange(6.0).view(3, 2), (3, 2))
    assert places_of(tensor).tolist() == [2, 3, 2, 3, 0, 1]
    assert torch.equal(densified(tensor).to_dense(), tensor.to_dense())


def test_a_tensor_without_entries_is_densified() -> None:
    empty = torch.sparse_coo_tensor(torch.zeros((1, 0), dtype=torch.int64), torch.zeros(0, 0), (2, 0))
    assert densified(empty).shape == (2, 0)
    assert places_of(empty).shape == (0,)


@each_layout
def test_first_and_second_derivatives_go_on_to_the_values(layout: dict[str, Any]) -> None:
    values = values_of(sparse(layout)).clone().requires_grad_()
    made = SparseFromValues.apply(values, sparse(layout))  # type: ignore[no-untyped-call]
    (first,) = torch.autograd.grad((made.to_dense() ** 3).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    assert torch.equal(first, 3 * values**2)
    assert torch.equal(second, 6 * values)


class Squared(Function):
    """The squares of the entries of a sparse tensor; the gradient is `factor` times the right one."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(tensor)
        ctx.factor = factor
        return tensor.to_dense() ** 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (tensor,) = ctx.saved_tensors
        slope = 2 * ctx.factor * gradients[0] * tensor.to_dense()
        return slope.sparse_mask(tensor.coalesce()) if tensor.layout is torch.sparse_coo else slope, None


@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["right", "wrong"])
@pytest.mark.parametrize("layout", [LAYOUTS["coo"], LAYOUTS["csr"]], ids=["coo", "csr"])
def test_the_values_of_a_sparse_argument_are_a_row(layout: dict[str, Any], factor: float) -> None:
    report = check_function(Squared.apply, (sparse(layout).requires_grad_(), factor))
    (row,) = report
    assert (row.name, row.numel) == ("tensor", 6)
    assert row.status is (Status.MATCH if factor == 1 else Status.MISMATCH)
    assert report.passed is (factor == 1)
