"""`shapes_and_dtypes`: what backwards return, before autograd sums it or casts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import Function

from tests.contract.made_functions import drawn, function, tried

X, B = drawn(3, 4), drawn(4, seed=1)
Z = torch.complex(X, X + 1)


def _plus(ctx: Any, x: Any, b: Any) -> Any:
    return x + b


def _matrix(ctx: Any, x: Any, b: Any) -> Any:
    return x @ torch.ones(4, 4, dtype=x.dtype) + b


RIGHT = {
    "summed": (function("Plus", _plus, lambda ctx, g: (g, g.sum(0))), (X, B)),
    "none for a bias": (function("Plus", lambda ctx, x, b: x * 2, lambda ctx, g: (g * 2, None)), (X, B)),
    "complex": (function("Twice", lambda ctx, z: z * 2, lambda ctx, g: g * 2), (Z,)),
    "an integer besides": (function("Power", lambda ctx, x, n: x * n, lambda ctx, g: (g * 3, None)), (X, 3)),
    "custom_fwd": (
        function(
            "Cast",
            torch.amp.custom_fwd(lambda ctx, x: x * 2, device_type="cpu"),
            torch.amp.custom_bwd(lambda ctx, g: g * 2, device_type="cpu"),
        ),
        (X,),
    ),
}

WRONG = {
    "not summed": (
        function("Plus", _plus, lambda ctx, g: (g, g)),
        (X, B),
        ["in float64, Plus.backward at ", " returns for b a gradient of shape (3, 4), should be shape (4,)"],
    ),
    "promoted to float64": (
        function("Plus", _plus, lambda ctx, g: (g * torch.ones(4, dtype=torch.float64), g.sum(0))),
        (X, B),
        ["in float32, Plus.backward at ", "returns for x a gradient of dtype float64, should be dtype float32"],
    ),
    "float32 always": (
        function("Plus", _plus, lambda ctx, g: (g.float(), g.sum(0))),
        (X, B),
        ["in float64", "for x a gradient of dtype float32, should be dtype float64"],
    ),
    "of the default dtype": (
        function("Plus", _plus, lambda ctx, g: (torch.ones(3, 4) * 1 + 0 * g[:1, :1].float(), g.sum(0))),
        (X, B),
        ["in float64", "for x a gradient of dtype float32, should be dtype float64"],
    ),
    "real for complex": (
        function("Real", lambda ctx, z: z.real * 2, lambda ctx, g: g * 2),
        (Z,),
        ["for z a gradient of dtype float64, should be dtype complex128"],
    ),
    "raises in float32": (
        function("Matrix", _matrix, lambda ctx, g: (g @ torch.ones(4, 4, dtype=torch.float64), g.sum(0))),
        (X, B),
        ["in float32 the forward runs, and the backward raises RuntimeError", "test_shapes_and_dtypes.py:"],
    ),
}


@pytest.mark.parametrize(("run", "inputs"), RIGHT.values(), ids=RIGHT)
def test_right_forms_pass(run: Any, inputs: Any) -> None:
    entry = tried("shapes_and_dtypes", run, *inputs)
    assert (entry.status, entry.message) == ("passed", "")


@pytest.mark.parametrize(("run", "inputs", "words"), WRONG.values(), ids=WRONG)
def test_wrong_forms_fail(run: Any, inputs: Any, words: list[str]) -> None:
    entry = tried("shapes_and_dtypes", run, *inputs)
    assert entry.status == "failed", entry.message
    for each in words:
        assert each in entry.message


def test_of_operations_of_torch_there_is_nothing_to_say() -> None:
    entry = tried("shapes_and_dtypes", nn.Linear(4, 2), X)
    assert (entry.status, entry.message) == ("passed", "only operations of torch have returned gradients")


def test_a_function_for_float64_only_is_tried_in_float64() -> None:
    def strict(ctx: Any, x: Any) -> Any:
        if x.dtype != torch.float64:
            raise ValueError("float64 only")
        return x * 2

    entry = tried("shapes_and_dtypes", function("Strict", strict, lambda ctx, g: g * 2), X)
    assert entry.status == "passed"
    assert entry.message.startswith("not tried in float32, where the function raises ValueError: float64 only")


def test_parameters_of_a_module_are_looked_at() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(B.clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = WRONG["not summed"][0](x, self.bias)
            return y

    entry = tried("shapes_and_dtypes", Bias(), X)
    assert "returns for b a gradient of shape (3, 4), should be shape (4,)" in entry.message


def test_an_operator_is_called_by_its_name() -> None:
    @torch.library.custom_op("contract_test::plus", mutates_args=())
    def plus(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return x + b

    plus.register_autograd(lambda ctx, g: (g, g))
    entry = tried("shapes_and_dtypes", plus, X, B)
    assert "the backward of contract_test::plus at " in entry.message
    assert "for b a gradient of shape (3, 4)" in entry.message


def test_the_backward_of_functions_is_given_back() -> None:
    before = torch.autograd.function.BackwardCFunction.apply
    tried("shapes_and_dtypes", WRONG["raises in float32"][0], X, B)
    assert torch.autograd.function.BackwardCFunction.apply is before
    assert Function.backward is not None


def test_the_default_dtype_is_that_of_the_caller() -> None:
    run = function("Ones", lambda ctx, x: x.sum(), lambda ctx, g: torch.ones(3, 4) * g.item())
    assert "in float64" in tried("shapes_and_dtypes", run, X).message
    torch.set_default_dtype(torch.float64)
    try:
        assert "in float32" in tried("shapes_and_dtypes", run, X).message
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
