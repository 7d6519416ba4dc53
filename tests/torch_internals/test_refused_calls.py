"""Whether torch has raised: its own functions and layers, and neither the user's code nor a backward nor a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck.torch_internals.modules import calls_in_traceback
from torch_gradcheck.torch_internals.refused_calls import (
    has_no_forward,
    lacks_backward,
    may_be_torchs,
    raises_itself,
    refused_call,
    without_backward,
)

X = torch.ones(2, 3)


def error_of(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  any
        function()
    error: Exception = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None  # without this function's frame
    return error


def raises() -> None:
    raise RuntimeError("mine")


def raises_after_torch() -> None:
    try:
        X @ X
    except RuntimeError:
        raise RuntimeError("mine") from None


def passes_on() -> Tensor:
    with torch.no_grad():
        try:
            return X @ X
        finally:
            X.sum()


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad @ grad


def in_a_backward() -> None:
    Wrong.apply(torch.ones(2, 3, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]


def catches_one_before() -> Tensor:
    try:
        return X.reshape(4)
    except RuntimeError:
        return torch.cat([X, X.T])


TORCHS: dict[str, tuple[Callable[[], object], str]] = {
    "operator": (lambda: X @ X, "torch.Tensor.matmul"),
    "function": (lambda: torch.cat([X, X.T]), "torch.cat"),
    "method": (lambda: X.reshape(4), "torch.Tensor.reshape"),
    "index": (lambda: X[5], "torch.Tensor.__getitem__"),
    "arguments": (lambda: F.linear("x", X), "torch.nn.functional.linear"),  # type: ignore[arg-type]
    "Python of torch": (lambda: F.nll_loss(X, "x"), "torch.nn.functional.nll_loss"),  # type: ignore[arg-type]
    "behind another that is caught": (catches_one_before, "torch.cat"),
    "through with and finally": (passes_on, "torch.Tensor.matmul"),
    "operator of the dispatcher": (lambda: torch.ops.aten.mm(X, X), "torch.ops.aten.mm"),
}


@pytest.mark.parametrize(("function", "name"), TORCHS.values(), ids=TORCHS)
def test_torch_has_raised(function: Callable[[], object], name: str) -> None:
    error = error_of(function)
    assert may_be_torchs(error)
    call = refused_call(error, function)
    assert call is not None
    assert name.rpartition(".")[2] in (call.function or "mm")


class Unspeakable:
    def __str__(self) -> str:
        raise KeyError("no words")


def raises_without_words() -> None:
    raise ValueError(Unspeakable())


OTHERS: dict[str, Callable[[], object]] = {
    "raise": raises,
    "raise without words": raises_without_words,
    "raise after torch": raises_after_torch,
    "backward": in_a_backward,
    "list": lambda: [X].pop(3),
    "key": lambda: {}["x"],
    "number": lambda: int("x"),
    "call": lambda: raises(1),  # type: ignore[call-arg]
    "graph": lambda: torch.ones(2, requires_grad=True).numpy(),
    "distribution": lambda: torch.distributions.Normal(X, -X, validate_args=True),
    "singular": lambda: torch.linalg.cholesky(-torch.eye(2)),
    "asserts": lambda: torch._assert(X.numel() == 1, "mine"),
    "checks": lambda: torch._check_value(X.numel() == 1, lambda: "mine"),
    "compares": lambda: torch.testing.assert_close(X, X + 1),
    "loads": lambda: nn.Linear(2, 2).load_state_dict({}),
    "ends an iteration": lambda: checkpoint(lambda x: next(iter([])), X, use_reentrant=False),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_torch_has_not_raised(function: Callable[[], object]) -> None:
    error = error_of(function)
    assert not may_be_torchs(error) or refused_call(error, function) is None


def test_what_was_warned_of_is_not_warned_of_again(recwarn: pytest.WarningsRecorder) -> None:
    def warns() -> object:
        warnings.warn("of shapes", stacklevel=1)
        return X @ X

    assert refused_call(error_of(warns), warns) is not None
    assert len(recwarn) == 1


class Unfinished(nn.Module):
    """Has no forward."""


class WithoutKernel(torch.autograd.Function):
    """Its backward does what torch refuses, in words that are of sparse tensors."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return torch.ones(2).to_sparse().cos()


def test_a_module_without_a_forward() -> None:
    assert has_no_forward(error_of(lambda: Unfinished()(X)))
    assert not has_no_forward(error_of(raises))


def test_a_function_without_a_backward() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    leaf = torch.ones(2, requires_grad=True)
    assert without_backward(error_of(lambda: Half.apply(leaf).sum().backward())) == "Half"
    assert without_backward(error_of(raises)) is None


def test_an_operation_without_a_backward_for_sparse_tensors() -> None:
    leaf = torch.eye(2).to_sparse().requires_grad_()
    other = torch.ones(2, requires_grad=True)
    assert lacks_backward(error_of(lambda: leaf.sin().to_dense().sum().backward()))
    assert not lacks_backward(error_of(lambda: WithoutKernel.apply(other).sum().backward()))
    assert not lacks_backward(error_of(lambda: torch.ones(2).to_sparse().cos()))


def test_another_error_the_second_time_is_no_refusal() -> None:
    error = error_of(lambda: X @ X)
    assert refused_call(error, lambda: X @ X.T) is None
    assert refused_call(error, raises) is None


def test_what_says_raise() -> None:
    assert raises_itself(error_of(raises))
    assert not raises_itself(error_of(lambda: X @ X))


def test_the_calls_that_an_error_came_through() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    outer, inner = calls_in_traceback(error_of(lambda: model(X)))
    assert (outer.module, inner.module) == (model, model[0])
    assert inner.args == (X,)
