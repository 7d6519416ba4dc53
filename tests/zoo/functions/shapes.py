"""What a backward returns for its inputs: which of them it serves, in which shape, in which dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal
from tests.zoo.functions.memory import OldSquare
from tests.zoo.functions.styles import Product


class Affine(torch.autograd.Function):
    """x·w + b, w and b broadcast over the rows of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum_to_size(weight.shape), grad.sum(0)


class Unsummed(Affine):
    """Leaves the sum over the rows to autograd, which does it without a word."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, grad * x, grad


class Kept(Affine):
    """Sums over the rows and keeps the dimension."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0), grad.sum(0, keepdim=True)


class Averaged(Affine):
    """A mean over the rows where a sum belongs."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).mean(0), grad.mean(0)


class FirstRow(Affine):
    """The gradient of the first row, where a sum over all belongs."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0), grad[0]


class Lower(OldSquare):
    """The gradient in float32, whatever the input is."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (2 * x * grad).float()


class Higher(OldSquare):
    """The gradient in float64, whatever the input is."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x.double() * grad


class NeededOnly(Product):
    """Returns the gradients that are needed, and nothing in the place of the others."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple([each for each, needed in zip(both(ctx, grad), ctx.needs_input_grad, strict=True) if needed])


class WrongPlace(Product):
    """Where only the second is needed, its gradient is returned in the first place."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        for_a, for_b = both(ctx, grad)
        needs_a, needs_b = ctx.needs_input_grad
        return (for_a, for_b) if needs_a and needs_b else (for_a if needs_a else for_b, None)


class OtherIfAlone(Product):
    """Where the first is not needed, the gradient of the second is computed with what was not saved: zeros."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        for_a, for_b = both(ctx, grad)
        return for_a, for_b if ctx.needs_input_grad[0] else torch.zeros_like(for_b)


class SavesIfNeeded(torch.autograd.Function):
    """a·b; what only the gradient of a needs is saved only if that is wanted, as kernels do to save memory."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        needs_a, needs_b = ctx.needs_input_grad
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return None if b is None else grad * b, None if a is None else grad * a


def both(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a product."""
    return Product.backward(ctx, grad)


def shapes() -> list[Case]:
    """All of them."""
    affine, product = (normal(3, 4), normal(4, seed=1), normal(4, seed=2)), (normal(3, 4), normal(3, 4, seed=1))
    shape, needed = ("shapes_and_dtypes",), ("needs_input_grad",)
    return [
        Case("broadcast and summed back", Affine.apply, affine, entries={"shapes_and_dtypes": "passed"}),
        Case("sum over a broadcast dimension left out", Unsummed.apply, affine, failed=shape),
        Case("dimension kept", Kept.apply, affine, failed=shape),
        Case("mean over the rows", Averaged.apply, affine, wrong=("weight", "bias")),
        Case("first row only", FirstRow.apply, affine, wrong=("bias",)),
        Case("float32 gradient", Lower.apply, (normal(3, 4),), failed=shape),
        Case("float64 gradient", Higher.apply, (normal(3, 4),), failed=shape),
        Case("needed gradients only", NeededOnly.apply, product, failed=needed),
        Case("gradient in the wrong place", WrongPlace.apply, product, failed=needed),
        Case("zero where it is alone", OtherIfAlone.apply, product, failed=needed),
        Case("saves what is needed", SavesIfNeeded.apply, product, entries={"needs_input_grad": "passed"}),
    ]
