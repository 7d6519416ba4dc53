"""Functions of several outputs: in nests, not all differentiable, not all used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal


class SineAndCosine(torch.autograd.Function):
    """sin x and cos x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor, for_cosine: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return for_sine * x.cos() - for_cosine * x.sin()


class Swapped(SineAndCosine):
    """The gradients of the two outputs are mixed up."""

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor, for_cosine: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return for_cosine * x.cos() - for_sine * x.sin()


class FirstOnly(SineAndCosine):
    """The gradient of the second output is forgotten."""

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor, for_cosine: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return for_sine * x.cos()


class Unmaterialised(SineAndCosine):
    """Told None where an output is not used, and ready for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        return SineAndCosine.forward(ctx, x)

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor | None, for_cosine: Tensor | None) -> Any:
        (x,) = ctx.saved_tensors
        gradient = None if for_sine is None else for_sine * x.cos()
        if for_cosine is None:
            return gradient
        return -for_cosine * x.sin() if gradient is None else gradient - for_cosine * x.sin()


class CrashesOnNone(Unmaterialised):
    """Told None where an output is not used, and not ready for it."""

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor, for_cosine: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return for_sine * x.cos() - for_cosine * x.sin()


class AllOrNothing(Unmaterialised):
    """No gradient at all where one output is not used."""

    @staticmethod
    def backward(ctx: Any, for_sine: Tensor | None, for_cosine: Tensor | None) -> Any:
        if for_sine is None or for_cosine is None:
            return None
        (x,) = ctx.saved_tensors
        return for_sine * x.cos() - for_cosine * x.sin()


class WithOrder(torch.autograd.Function):
    """Sorted numbers and where they stood; the places are marked non-differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ordered, places = x.sort(-1)
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)
        return ordered, places

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        (places,) = ctx.saved_tensors
        return torch.zeros_like(grad).scatter(-1, places, grad)


class GatheredBackwards(WithOrder):
    """The gradient is put in order once more, where it should go back to where the numbers stood."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        (places,) = ctx.saved_tensors
        return grad.gather(-1, places)


class WithStatistics(torch.autograd.Function):
    """x − mean, and the mean, which is a float and marked non-differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        mean = x.mean(-1, keepdim=True)
        ctx.mark_non_differentiable(mean)
        return x - mean, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        return grad - grad.mean(-1, keepdim=True)


def in_a_nest(x: Tensor, weight: Tensor) -> Any:
    """A mapping of tensors and lists of them, beside what is none."""
    sine, cosine = SineAndCosine.apply(x)
    return {"both": [sine * weight, (cosine,)], "name": "nest", "count": 2}


def outputs() -> list[Case]:
    """All of them."""
    x = normal(3, 4)
    unused = {"undefined_grads": "passed"}
    return [
        Case("two outputs", SineAndCosine.apply, (x,), entries=unused),
        Case("outputs mixed up", Swapped.apply, (x,), wrong=("x",)),
        Case("an output's gradient forgotten", FirstOnly.apply, (x,), wrong=("x",)),
        Case("a nest of outputs", in_a_nest, (x, normal(4, seed=1)), entries=unused),
        Case("not materialised", Unmaterialised.apply, (x,), entries=unused),
        Case("crashes on None", CrashesOnNone.apply, (x,), failed=("undefined_grads",)),
        Case("nothing where one is None", AllOrNothing.apply, (x,), failed=("undefined_grads",)),
        Case("integers marked non-differentiable", WithOrder.apply, (x,)),
        Case("sorted, gradient not sorted back", GatheredBackwards.apply, (x,), wrong=("x",)),
        Case("floats marked non-differentiable", WithStatistics.apply, (x,)),
    ]
