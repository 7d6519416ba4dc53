"""A backward that cannot be differentiated is refused, with its Function or operation, and its module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo.second_order import Applied, Attention, around, noise
from torch_gradcheck import InvalidRequestError, check_function, check_module


class Once(torch.autograd.Function):
    """x³, whose author says that its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 3 * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize(
    "loss_fn", [lambda y: y.square().sum(), lambda y: y.sum()], ids=["autograd raises", "autograd says nothing"]
)
def test_a_function_that_is_once_differentiable_is_named(loss_fn: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Applied(Once))
    with pytest.raises(InvalidRequestError) as error:
        check_module(model, loss_fn, noise(2, 4), order=2)
    words = "order=2: autograd.Function Once in 1 (Applied) is marked @once_differentiable, in its backward at"
    assert str(error.value).startswith(words)
    assert "tests/diagnosis/test_first_order_only.py:" in str(error.value)


def test_of_first_order_nothing_is_said() -> None:
    assert check_module(around(Once), lambda y: y.square().sum(), noise(2, 4)).passed


def test_in_a_function_alone() -> None:
    with pytest.raises(InvalidRequestError, match=r"autograd\.Function Once in .* is marked @once_differentiable"):
        check_function(Once.apply, (noise(2, 3),), order=2)


def test_one_that_no_gradient_passes_is_none_of_the_checks() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * Once.apply(x.detach().requires_grad_()).sum()

    assert check_module(Beside(), lambda y: y.square().sum(), noise(2, 4), order=2).passed


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x.flip(0) + 1)


def test_an_operation_without_a_formula_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"no derivative of _cdist_backward.* in 1 \(Distances\)"):
        check_module(nn.Sequential(nn.Linear(4, 3), Distances()), lambda y: y.square().sum(), noise(3, 4), order=2)


def test_fused_attention_is_named_and_the_way_out() -> None:
    torch.manual_seed(0)
    model = Attention()
    if "FlashAttention" not in str(_node_of_attention(model)):
        pytest.skip("this torch computes attention by other operations")
    words = (
        r"no derivative of _scaled_dot_product_\w+_backward.* in layer.self_attn \(Multi.*sdpa_kernel\(SDPBackend.MATH"
    )
    with pytest.raises(InvalidRequestError, match=words):
        check_module(model, lambda y: y.square().sum(), noise(2, 3, 8), order=2)
    with sdpa_kernel(SDPBackend.MATH):
        assert check_module(model, lambda y: y.square().sum(), noise(2, 3, 8), order=2).passed


def _node_of_attention(model: Attention) -> Any:
    x = noise(1, 1, 2, 4).requires_grad_()
    return torch.nn.functional.scaled_dot_product_attention(x, x, x).grad_fn
