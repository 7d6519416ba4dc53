"""Functions that cannot be checked end in their own exception, or in one that says what is the matter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.functions.case import normal
from tests.zoo.functions.complex_numbers import Rotation
from tests.zoo.functions.memory import OldSquare
from tests.zoo.functions.styles import Product
from tests.zoo.unrepeatable import by_entropy
from torch_gradcheck import check_function
from torch_gradcheck.errors import InvalidRequestError, NonDeterministicLossError, NonFiniteLossError


class OfAnotherShape(OldSquare):
    """The gradient is a vector of as many entries."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad).reshape(-1)[1:]


class OneTooFew(Product):
    """One gradient for two inputs."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Product.backward(ctx, grad)[:1]


class ComplexForReal(Rotation):
    """A complex gradient for a real input."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, phase = ctx.saved_tensors
        turned = grad.conj() * torch.polar(torch.ones_like(phase), phase)
        return turned, -(turned * x).imag


def counting() -> Callable[[Tensor], Tensor]:
    """Another function at every call."""
    calls = count(1)
    return lambda x: x * next(calls)


@pytest.mark.parametrize(
    ("function", "inputs", "error", "words"),
    [
        pytest.param(OfAnotherShape.apply, (normal(3, 4),), RuntimeError, "invalid gradient", id="another shape"),
        pytest.param(OneTooFew.apply, (normal(3), normal(3)), RuntimeError, "number of gradients", id="one too few"),
        pytest.param(ComplexForReal.apply, (normal(3), normal(3)), RuntimeError, "complex", id="complex for real"),
        pytest.param(by_entropy, (normal(3),), NonDeterministicLossError, "two equal", id="random, without a seed"),
        pytest.param(counting(), (normal(3),), NonDeterministicLossError, "two equal", id="counted across calls"),
        pytest.param(torch.log, (-normal(3).abs(),), NonFiniteLossError, "nan", id="NaN"),
        pytest.param(torch.argmax, (normal(3),), InvalidRequestError, "no tensor of floating", id="integers"),
        pytest.param(torch.bincount, (torch.tensor([1, 2]),), InvalidRequestError, "no tensor", id="nothing on trial"),
    ],
)
def test_what_cannot_be_checked_says_why(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"(?is){words}"):
        check_function(function, inputs)
