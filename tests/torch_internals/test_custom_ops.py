"""Functions that torch makes of what users wrote, and why a check looks behind them: to name a line that is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.torch_internals.autograd import function_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of, name_of_function, users_function, written_for


def backward(ctx: Any, grad: Tensor) -> Any:
    return 3 * grad, None


def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...


class Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


def test_the_formula_of_an_operator_is_found_from_its_node() -> None:
    @torch.library.custom_op("torch_gradcheck_tests::triple", mutates_args=())
    def triple(x: Tensor, unused: float) -> Tensor:
        return 3 * x

    triple.register_autograd(backward, setup_context=setup_context)
    node = triple(torch.ones(2, requires_grad=True), 1.0).grad_fn
    function = function_of(node)
    assert function is not None
    operator = custom_op_of(function)
    assert operator is not None
    assert (operator.name, operator.arguments) == ("torch_gradcheck_tests::triple", ("x", "unused"))
    assert operator.backward is backward
    assert operator.setup_context is setup_context
    assert name_of_function(function) == "torch_gradcheck_tests::triple"


def test_any_other_function_is_no_operator() -> None:
    assert custom_op_of(Plain) is None
    assert name_of_function(Plain) == "Plain"
    plain = Plain.apply(torch.ones(2, requires_grad=True))  # type: ignore[no-untyped-call]
    assert function_of(plain.grad_fn) is Plain
    assert function_of((plain * 2).grad_fn) is None


class Mapped(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


def test_the_function_that_is_applied_under_vmap_is_found() -> None:
    mapped = function_of(torch.vmap(Mapped.apply)(torch.ones(2, requires_grad=True)).grad_fn)
    assert mapped is not None
    assert mapped is not Mapped
    assert users_function(mapped) is Mapped
    assert users_function(Mapped) is Mapped


def test_torchs_own_functions_are_no_users() -> None:
    class Own(torch.autograd.Function):
        pass

    Own.__module__ = "torch.utils.checkpoint"
    assert users_function(Own) is None


def test_an_operator_is_made_of_a_function_of_the_users() -> None:
    """Its forward has lines of the user's; calls of the operator go through code of torch's."""

    def quadrupled(x: Tensor) -> Tensor:
        return 4 * x

    operator = torch.library.custom_op("torch_gradcheck_tests::quadrupled", quadrupled, mutates_args=())
    assert written_for(operator) is quadrupled
    assert written_for(quadrupled) is quadrupled
