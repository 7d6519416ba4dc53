"""Whether torch has raised: its own functions and layers, and neither the user's code nor a backward nor a device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_gradcheck.torch_internals.modules import calls_in_traceback
from torch_gradcheck.torch_internals.refused_calls import may_be_torchs, raises_itself, refused_call

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
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_torch_has_not_raised(function: Callable[[], object]) -> None:
    error = error_of(function)
    assert not may_be_torchs(error) or refused_call(error, function) is None


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
