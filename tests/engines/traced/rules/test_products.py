"""Products padded to whole tiles of columns."""

from __future__ import annotations

import pytest
import torch

from torch_gradcheck.engines.traced.rules.products import _rows_times


@pytest.mark.parametrize("with_bias", [False, True], ids=["product", "and sum"])
@pytest.mark.parametrize("columns", [1, 4, 6, 10, 12, 13, 32, 47, 48, 50])
def test_products_are_right_with_any_number_of_columns(columns: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(7, columns, dtype=torch.float64)
    bias = torch.randn(columns, dtype=torch.float64) if with_bias else None
    expected = A @ B if bias is None else A @ B + bias
    found = _rows_times(A, B, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
