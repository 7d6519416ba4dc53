"""A backward that is differentiated once more: what refuses to be, and what is taken for a constant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_gradcheck.torch_internals.double_backward import (
    is_of_operation,
    is_once_differentiable,
    kept_by,
    kept_without_graph,
    operation_without_formula,
)


class Kept(torch.autograd.Function):
    """x · exp(x), with more kept than it needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exp = x.exp()
        result = x * exp
        ctx.save_for_backward(x, exp, result)
        ctx.largest, ctx.sign, ctx.words, ctx.again = float(exp.max()), x.sign().detach(), "x", x
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        x, exp, _ = ctx.saved_tensors
        return grad * (1 + x) * exp


class Once(Kept):
    """The same, marked."""

    backward = once_differentiable(Kept.backward)  # type: ignore[assignment]


def test_what_a_function_keeps_without_a_graph() -> None:
    """A double backward takes it for a constant: inputs and outputs have a graph, intermediates have none."""
    y = Kept.apply(torch.ones(2, requires_grad=True))
    assert set(kept_without_graph(y.grad_fn)) == {"ctx.saved_tensors[1]", "ctx.largest", "ctx.sign"}
    y.sum().backward()
    assert set(kept_without_graph(y.grad_fn)) == {"ctx.largest", "ctx.sign"}


def test_all_that_a_function_keeps_is_known_by_what_the_user_calls_it() -> None:
    node = Kept.apply(torch.ones(2, requires_grad=True)).grad_fn  # type: ignore[no-untyped-call]
    kept = kept_by(node)
    assert list(kept) == [*[f"ctx.saved_tensors[{k}]" for k in range(3)], *map("ctx.{}".format, vars(node))]
    assert kept["ctx.words"] == "x"


def test_a_function_that_says_that_it_cannot_be_differentiated_twice() -> None:
    assert is_once_differentiable(Once)
    assert not is_once_differentiable(Kept)


ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x), ATTENTION),
        (lambda x: torch.cdist(x, x + 1), "_cdist_backward"),
    ],
    ids=["attention", "cdist"],
)
def test_an_operation_without_a_derivative_is_named(function: Any, operation: str) -> None:
    """It has a backward, which has none: a check of second order says so."""
    x = torch.eye(4).expand(1, 1, 4, 4).clone().requires_grad_()
    y = function(x)
    if operation == ATTENTION and "FlashAttention" not in y.grad_fn.name():
        pytest.skip("this torch computes it by other operations")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError) as error:
        gradient.sum().backward()
    assert operation_without_formula(error.value) == operation


def test_another_exception_names_no_operation() -> None:
    assert operation_without_formula(RuntimeError("derivative for the user")) is None
    assert not is_of_operation(torch.ones(2, requires_grad=True) * 2, "_cdist_backward")
