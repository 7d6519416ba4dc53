"""Grouped products in float64 beside torch's own in float32, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_gradcheck import check_module
from torch_gradcheck.precision.grouped_products import grouped_product
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.operations import GROUPED_PRODUCTS

pytestmark = pytest.mark.skipif(
    not GROUPED_PRODUCTS or not hasattr(F, "grouped_mm"), reason="this version of torch has no grouped products"
)

ENDS = torch.tensor([8, 8, 16, 24], dtype=torch.int32)
"""Of four groups, one of them empty."""


@pytest.mark.parametrize(
    ("A", "B", "offs"),
    [
        ((24, 8), (4, 8, 16), ENDS),
        ((8, 24), (24, 16), ENDS),
        ((4, 8, 16), (16, 24), ENDS),
        ((4, 8, 16), (4, 16, 8), None),
    ],
    ids=["rows", "summed", "columns", "all"],
)
def test_it_is_the_operation_of_torch(A: tuple[int, ...], B: tuple[int, ...], offs: Tensor | None) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(A), torch.randn(B)
    if offs is None or one.ndim == 3:
        expected = F.grouped_mm(one, other.mT.contiguous().mT, offs=offs)
    else:
        expected = F.grouped_mm(one if other.ndim == 3 else one.mT.contiguous().mT, other, offs=offs)
    found = grouped_product(one.double(), other.double(), offs)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


def test_rows_of_no_group_are_zero() -> None:
    found = grouped_product(torch.ones(5, 2), torch.ones(2, 2, 3), torch.tensor([1, 3], dtype=torch.int32))
    assert found.sum(1).tolist() == [6, 6, 6, 0, 0]


class Grouped(nn.Module):
    """Experts by one grouped product, each with the rows that a router sent it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4, 4))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        chosen, order = scores.argmax(1).sort()
        ends = torch.histc(chosen.float(), bins=3, min=0, max=2).cumsum(0, dtype=torch.int32)
        products = F.grouped_mm(x[order], self.experts, offs=ends)
        products = products * self.factor + products.detach() * (1 - self.factor)  # a wrong gradient if it is not 1
        return products * scores.softmax(1).gather(1, chosen[:, None])


@pytest.mark.parametrize("factor", [1.0, 0.5], ids=["right", "wrong"])
def test_a_mixture_of_experts_is_checked_in_float64(factor: float) -> None:
    torch.manual_seed(0)
    model = Grouped(factor)
    report = check_module(model, nn.MSELoss(), (torch.randn(6, 4), torch.randn(6, 4)), method="exact", progress=False)
    statuses = {row.name: row.status for row in report}
    assert (statuses["experts"] == "match") is (factor == 1), str(report)
    assert report.passed is (factor == 1)
    assert any("computed in float64 (_grouped_mm, _to_copy)" in note for note in report.notes), report.notes
    assert not [note for note in report.notes if "one coordinate at a time" in note]


def test_only_precisions_without_a_kernel_are_taken_over() -> None:
    A, B = torch.randn(8, 8), torch.randn(1, 8, 8)
    with PrecisionMode(torch.float32) as mode:
        F.grouped_mm(A, B, offs=torch.tensor([8], dtype=torch.int32))
    assert not mode.overridden
