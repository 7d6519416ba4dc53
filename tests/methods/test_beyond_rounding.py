"""Entries that are off by no more than rounding: flat; those that are off by more stay wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torch_gradcheck import check_function
from torch_gradcheck.reporting.facts import Status

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

NOTHING_LEFT = {
    "cancelled": lambda x: F.gelu(-100 * x.abs() - 1),
    "underflown": lambda x: (x - 740).exp(),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("function", NOTHING_LEFT.values(), ids=NOTHING_LEFT)
def test_of_a_function_that_stands_still_for_rounding_nothing_is_proven(function: Any, order: int) -> None:
    report = check_function(function, (X,), order=order)
    assert [row.status for row in report] == [Status.FLAT], str(report)


class Spurious(torch.autograd.Function):
    """A constant that has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad


def test_a_gradient_of_a_constant_is_wrong() -> None:
    (row,) = check_function(lambda x: 0 * Spurious.apply(x) + 0 * x + Spurious.apply(x) - 1, (X,))  # type: ignore[no-untyped-call]
    assert row.status is Status.MISMATCH
    assert row.diagnosis is not None
    assert row.diagnosis.message.endswith(
        "where it should be zero: J does not depend on it (it does not move at any step)"
    )
