"""Grouped products have no float64 kernel, and are computed in float64 all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.precision.grouped_products import grouped_product

ENDS = [3, 3, 8, 12]
"""The second group is empty."""


def by_loop(a: Tensor, b: Tensor) -> Tensor:
    """Each group's own product, written out."""
    groups = list(zip([0, *ENDS[:-1]], ENDS, strict=True))
    if a.dim() == 3 and b.dim() == 3:
        return torch.stack([one @ other for one, other in zip(a, b, strict=True)])
    if a.dim() == 2 and b.dim() == 2:
        return torch.stack([a[:, begin:end] @ b[begin:end] for begin, end in groups])
    if a.dim() == 2:
        return torch.cat([a[begin:end] @ b[group] for group, (begin, end) in enumerate(groups)])
    return torch.cat([a[group] @ b[:, begin:end] for group, (begin, end) in enumerate(groups)], dim=1)


SHAPES = [
    pytest.param((12, 8), (4, 8, 16), id="groups of rows"),
    pytest.param((4, 20, 8), (8, 12), id="groups of columns"),
    pytest.param((20, 12), (12, 16), id="groups of what is summed over"),
    pytest.param((4, 20, 8), (4, 8, 16), id="a batch"),
]
"""Of a and b; every size is a multiple of 4: the float32 kernel wants strides of a multiple of 16 bytes."""


@pytest.mark.parametrize(("of_a", "of_b"), SHAPES)
def test_the_product_is_that_of_each_group(of_a: tuple[int, ...], of_b: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(of_a, dtype=torch.float64), torch.randn(of_b, dtype=torch.float64)
    offs = None if len(of_a) == len(of_b) == 3 else torch.tensor(ENDS, dtype=torch.int32)

    torch.testing.assert_close(grouped_product(a, b, offs), by_loop(a, b))


def test_rows_behind_the_last_group_are_zero_whatever_they_hold() -> None:
    a, b = torch.ones(4, 2, dtype=torch.float64), torch.ones(2, 2, 3, dtype=torch.float64)
    a[3] = torch.nan

    product = grouped_product(a, b, torch.tensor([1, 3], dtype=torch.int32))

    assert product[:3].eq(2).all()
    assert product[3].eq(0).all()


@pytest.mark.skipif(not hasattr(nn.functional, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize(("of_a", "of_b"), SHAPES)
def test_it_is_what_the_float32_kernel_computes(of_a: tuple[int, ...], of_b: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(of_a), torch.randn(of_b)
    offs = None if len(of_a) == len(of_b) == 3 else torch.tensor(ENDS, dtype=torch.int32)
    try:
        of_torch = nn.functional.grouped_mm(a, b, offs=offs)
    except RuntimeError as error:
        pytest.skip(f"this torch has no float32 kernel: {error}")

    torch.testing.assert_close(of_torch.double(), grouped_product(a.double(), b.double(), offs), rtol=1e-4, atol=1e-4)


class TimesThree(torch.autograd.Function):
    """2x, with the gradient of 3x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


class Experts(nn.Module):
    """Each row goes through the expert that a router chooses, as the mixtures of transformers compute them."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(3, 8, 4) / 2)
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        share, expert = self.router(x).softmax(-1).max(-1)
        order = expert.argsort()
        ends = (expert[order] == torch.arange(3)[:, None]).sum(1).cumsum(0).to(torch.int32)
        weight = TimesThree.apply(self.weight) if self.wrong else self.weight
        y = nn.functional.grouped_mm(x[order], weight, offs=ends)
        return torch.zeros_like(y).index_copy(0, order, y) * share[:, None]


@pytest.mark.skipif(not hasattr(nn.functional, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_mixture_of_experts_is_checked(wrong: bool, method: str) -> None:
    torch.manual_seed(0)
    report = check_module(Experts(wrong), torch.sum, torch.randn(12, 8), method=method)

    assert {row.name for row in report.mismatches} == ({"weight"} if wrong else set())
    assert {row.name for row in report if row.status == "match"} >= {"router.weight", "router.bias"}
    if wrong:
        assert report["weight"].diagnosis is not None
        assert report["weight"].diagnosis.factor == pytest.approx(1.5)
    else:
        assert report.proven
