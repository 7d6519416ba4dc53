"""The ways in which a Function can be written, each right, and the factor that one of them has too many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tests.zoo.functions.case import Case, normal


class Product(torch.autograd.Function):
    """a·b, in the old style."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return grad * b, grad * a


class DoubledProduct(Product):
    """The gradient for the first factor is twice too large."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return 2 * grad * b, grad * a


class Square(torch.autograd.Function):
    """x², with setup_context."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class OnceDifferentiable(torch.autograd.Function):
    """sin x; its backward says that it cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class InPlaceDouble(torch.autograd.Function):
    """2x, written over x and marked so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 2 * grad


class TwiceByHand(torch.autograd.Function):
    """x³; its backward is a Function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return TwiceByHandBackward.apply(*ctx.saved_tensors, grad)


class TwiceByHandBackward(torch.autograd.Function):
    """3x²·g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(x, grad)
        return 3 * x * x * grad

    @staticmethod
    def backward(ctx: Any, second: Tensor) -> Any:
        x, grad = ctx.saved_tensors
        return 6 * x * grad * second, 3 * x * x * second


class WrongTwice(TwiceByHand):
    """x³; the gradient is right, its own backward lost a factor."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return WrongTwiceBackward.apply(*ctx.saved_tensors, grad)


class WrongTwiceBackward(TwiceByHandBackward):
    """3x²·g, with 3 where 6 belongs."""

    @staticmethod
    def backward(ctx: Any, second: Tensor) -> Any:
        x, grad = ctx.saved_tensors
        return 3 * x * grad * second, 3 * x * x * second


class Linear(torch.autograd.Function):
    """x wᵀ · scale + b: an argument that may be None, and others that are no tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, name: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scale = scale
        y = x @ weight.T * scale
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        return (
            grad @ weight * ctx.scale if wants_x else None,
            grad.T @ x * ctx.scale if wants_weight else None,
            grad.sum(0) if wants_bias else None,
            None,
            None,
        )


class Unused(torch.autograd.Function):
    """2x, whatever y is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 2 * grad, None


class Identity(torch.autograd.Function):
    """x, as a view of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad


class Returned(Identity):
    """x itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x


class Sum(Product):
    """a + b; one gradient is handed to both."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad


class Reversal(Identity):
    """x, with a gradient of the other sign: meant so by whoever adapts domains, and no derivative of x."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -grad


def styles() -> list[Case]:
    """All of them."""
    x, weight = normal(3, 4), normal(2, 4, seed=1)
    neither = {"forward_ad": "not_applicable", "vmap": "not_applicable"}
    needs, kept = {"needs_input_grad": "passed"}, {"grad_output_kept": "passed"}
    return [
        Case("old style", Product.apply, (x, normal(3, 4, seed=1)), entries=neither | needs),
        Case("factor 2 for one input", DoubledProduct.apply, (x, normal(3, 4, seed=1)), wrong=("a",)),
        Case("setup_context", Square.apply, (x,), entries=neither | {"second_order": "passed"}),
        Case("once_differentiable", OnceDifferentiable.apply, (x,), entries=neither),
        Case("in place, marked dirty", InPlaceDouble.apply, (x,), entries={"inputs_kept": "passed"}),
        Case("double backward by hand", TwiceByHand.apply, (x,), entries={"second_order": "passed"}),
        Case("double backward by hand, wrong", WrongTwice.apply, (x,), failed=("second_order",)),
        Case("arguments that are no tensors", Linear.apply, (x, weight, normal(2), 0.5, "linear"), entries=needs),
        Case("argument that is None", Linear.apply, (x, weight, None, 0.5, "linear")),
        Case("one input requires grad", Product.apply, (x, normal(3, 4, seed=1).requires_grad_())),
        Case("unused input", Unused.apply, (x, normal(3)), rows={"y": "unused"}),
        Case("identity", Identity.apply, (x,)),
        Case("input returned", Returned.apply, (x,)),
        Case("one gradient for both inputs", Sum.apply, (x, normal(3, 4, seed=1)), entries=kept),
        Case("one tensor in two places", Product.apply, (x, x)),
        Case("reversed gradient", Reversal.apply, (x,), wrong=("x",)),
        Case("a number", Square.apply, (normal(),)),
        Case("a number by an array", Product.apply, (normal(3), torch.tensor(0.7)), failed=("shapes_and_dtypes",)),
        Case("an empty tensor beside a full one", torch_cat, (normal(0, 3), normal(2, 3, seed=1)), rows={"a": "flat"}),
    ]


def torch_cat(a: Tensor, b: Tensor) -> Tensor:
    """Rows below each other."""
    return torch.cat([a, b]).square()
