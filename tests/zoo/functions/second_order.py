"""Right gradients whose own derivative is right, wrong, refused, or lost without a word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tests.zoo.functions.case import Case, normal
from tests.zoo.functions.memory import OldSquare


class Swish(torch.autograd.Function):
    """x·σ(x), from x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        sigma = x.sigmoid()
        return grad * (sigma + x * sigma * (1 - sigma))


class SavesIntermediate(torch.autograd.Function):
    """x·σ(x); σ(x) is saved, and is a constant for whoever differentiates the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigma = x.sigmoid()
        ctx.save_for_backward(x, sigma)
        return x * sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, sigma = ctx.saved_tensors
        return grad * (sigma + x * sigma * (1 - sigma))


class SavesIntermediateAndSaysSo(SavesIntermediate):
    """The same with a backward that says that it cannot be differentiated."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SavesIntermediate.backward(ctx, grad)


class IntermediateReturned(torch.autograd.Function):
    """x·σ(x); σ(x) is an output too, and so a value that autograd knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        sigma = x.sigmoid()
        ctx.save_for_backward(x, sigma)
        return x * sigma, sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor, for_sigma: Tensor) -> Any:
        x, sigma = ctx.saved_tensors
        return grad * sigma + (grad * x + for_sigma) * sigma * (1 - sigma)


class WithoutGraph(OldSquare):
    """x²; the backward runs under no_grad."""

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad)


class Detached(OldSquare):
    """x²; the saved x is detached in the backward."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * grad


class LinearWithoutGraph(torch.autograd.Function):
    """3x; the backward runs under no_grad, and its second derivative in x is 0, but that in its gradient is 3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 3 * grad


class ByNumpy(torch.autograd.Function):
    """exp x by numpy, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.from_numpy(x.detach().exp().numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() * y.detach().numpy())


def second_order() -> list[Case]:
    """All of them."""
    x = (normal(3, 4),)
    right = {"second_order": "passed"}
    return [
        Case("double backward by autograd", Swish.apply, x, entries=right),
        Case("intermediate saved", SavesIntermediate.apply, x, failed=("second_order",)),
        Case("intermediate saved, once differentiable", SavesIntermediateAndSaysSo.apply, x, entries=right),
        Case("intermediate saved that is an output", IntermediateReturned.apply, x, entries=right),
        Case("backward under no_grad", WithoutGraph.apply, x, failed=("second_order",)),
        Case("saved input detached", Detached.apply, x, failed=("second_order",)),
        Case("linear, backward under no_grad", LinearWithoutGraph.apply, x, failed=("second_order",)),
        Case("backward by numpy", ByNumpy.apply, x, failed=("second_order",)),
    ]
