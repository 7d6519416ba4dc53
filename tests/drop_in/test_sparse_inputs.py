"""`gradcheck` of functions of sparse tensors, with and without the entries that these do not specify."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck import gradcheck

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

DENSE = torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=torch.float64)

LAYOUTS: dict[str, dict[str, Any]] = {
    "coo": {"layout": torch.sparse_coo},
    "csr": {"layout": torch.sparse_csr},
    "csc": {"layout": torch.sparse_csc},
    "bsr": {"layout": torch.sparse_bsr, "blocksize": (1, 1)},
    "bsc": {"layout": torch.sparse_bsc, "blocksize": (1, 1)},
}

each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


class Dense(Function):
    """The dense tensor; its gradient has the factor `specified` where the input has an entry, else `unspecified`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, specified: float, unspecified: float) -> Tensor:
        dense = tensor.to_dense()
        ctx.factor = torch.where(dense != 0, specified, unspecified)
        return dense

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.factor, None, None


@pytest.mark.parametrize("fast_mode", [False, True], ids=["slow", "fast"])
@each_layout
def test_masked_leaves_out_what_is_not_specified(layout: dict[str, Any], fast_mode: bool) -> None:
    x = DENSE.to_sparse(**layout).requires_grad_()
    assert gradcheck(lambda x: x.to_dense(masked_grad=True), x, masked=True, fast_mode=fast_mode)
    assert gradcheck(lambda x: x.to_dense(masked_grad=False), x, masked=False, fast_mode=fast_mode)
    assert not gradcheck(
        lambda x: x.to_dense(masked_grad=True), x, masked=False, fast_mode=fast_mode, raise_exception=False
    )


@pytest.mark.parametrize(
    ("specified", "unspecified", "masked", "passes"),
    [(1, 1, False, True), (1, 0, True, True), (1, 0, False, False), (1.01, 1, True, False), (1.01, 1, False, False)],
)
def test_a_dense_gradient_is_judged_where_it_counts(
    specified: float, unspecified: float, masked: bool, passes: bool
) -> None:
    x = DENSE.to_sparse().requires_grad_()
    found = gradcheck(
        lambda x: Dense.apply(x, specified, unspecified),  # type: ignore[no-untyped-call]
        x,
        masked=masked,
        raise_exception=False,
    )
    assert found is passes


def test_a_gradient_of_another_layout_is_told() -> None:
    x = DENSE.to_sparse().requires_grad_()

    class Other(Function):
        @staticmethod
        def forward(ctx: Any, tensor: Tensor) -> Tensor:
            return tensor.to_dense()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0].to_sparse(1)

    with pytest.raises(RuntimeError, match="grad is sparse tensor, but has incorrect sparse_dim 1, expected 2"):
        gradcheck(Other.apply, x)
