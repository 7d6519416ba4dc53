"""Gradients that a backward is given, and leaves as they were, or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry
from tests.zoo.functions.case import normal
from tests.zoo.functions.memory import OldSquare

X = normal(3, 4, dtype=torch.float64)


class InPlace(OldSquare):
    """Scales the gradient where it is."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad.mul_(2)
        return OldSquare.backward(ctx, grad) / 2


class ByData(OldSquare):
    """The same past the version counter."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad.data.mul_(2)
        return OldSquare.backward(ctx, grad) / 2


class Transposed(OldSquare):
    """A contiguous copy of the transposed gradient, which is no copy where that is contiguous."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        flipped = grad.t().contiguous()
        flipped.mul_(2)
        return OldSquare.backward(ctx, flipped.t()) / 2


class Second(torch.autograd.Function):
    """x² and x³; the backward writes to the second gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        second.mul_(3)
        return 2 * x * first + x**2 * second


def twice(x: Tensor) -> Tensor:
    return InPlace.apply(x).sin() + x  # type: ignore[no-any-return, no-untyped-call]


class Hands(OldSquare):
    """Returns a copy, and writes to that."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad.clone().mul_(2)) / 2


@pytest.mark.parametrize(
    ("function", "what", "line"),
    [
        (InPlace.apply, "the gradient of output", InPlace),
        (ByData.apply, "the gradient of output", ByData),
        (Transposed.apply, "the gradient of output", Transposed),
        (Second.apply, "the gradient of output[1]", Second),
        (twice, "the gradient given to InPlace", InPlace),
    ],
    ids=["in place", "by data", "transposed", "second output", "inside of a function"],
)
def test_a_backward_that_writes_to_its_gradient_is_told_with_the_line(function: Any, what: str, line: Any) -> None:
    found = entry("grad_output_kept", function, (X,))
    assert found.status == "failed"
    assert found.message.startswith(f"the backward writes to {what}: it is ")
    first = line.backward.__code__.co_firstlineno
    lines = [f"(tests/contract/test_grad_output_kept.py:{number})" for number in range(first, first + 6)]
    assert any(found.message.endswith(each) for each in lines)


class Through(OldSquare):
    """Hands the very gradient on, to be added up by autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


def summed(x: Tensor) -> Tensor:
    return Through.apply(x) + Through.apply(x) + x  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(
    "function",
    [OldSquare.apply, summed, Hands.apply, nn.Linear(4, 2), lambda x: (x + 1, x.t())],
    ids=["square", "handed on", "copy", "linear", "views"],
)
def test_backwards_that_keep_it_pass(function: Any) -> None:
    assert entry("grad_output_kept", function, (X,)).status == "passed"
