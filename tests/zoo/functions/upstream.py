"""Backwards that are right for the gradient that their author had in mind: uniform, of ones, of a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal, positive
from tests.zoo.functions.memory import OldSquare


class OfTheMean(OldSquare):
    """Takes the mean of the gradient for each of its entries."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad.mean()


class OfTheFirst(OldSquare):
    """Takes the first entry of the gradient for all of them."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad.flatten()[0]


class OfOnes(OldSquare):
    """Takes the gradient for ones."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x + 0 * grad


class OfItsSize(OldSquare):
    """Loses the sign of the gradient."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad.abs()


class Softmax(torch.autograd.Function):
    """Softmax over the last axis; its mean is constant, so that a test of `y.mean()` sees nothing of the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * (grad - (grad * y).sum(-1, keepdim=True))


class SoftmaxOfTheMean(Softmax):
    """Subtracts a plain mean where one weighted by y belongs: both are the gradient itself where that is uniform."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y * (grad - grad.mean(-1, keepdim=True))


class RMSNorm(torch.autograd.Function):
    """x / rms(x) · w, from x and w alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return normalised(x)[0] * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        normal, scale = normalised(x)
        g = grad * weight
        return scale * (g - normal * (g * normal).mean(-1, keepdim=True)), (grad * normal).sum(0)


class RMSNormAtWeightOne(RMSNorm):
    """The gradient for x is right where the weight is 1, as it is when training starts."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        normal, scale = normalised(x)
        projection = (grad * normal).mean(-1, keepdim=True)
        return scale * (grad * weight - normal * projection), (grad * normal).sum(0)


class RMSNormWithoutProjection(RMSNorm):
    """Takes rms(x) for a constant."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        normal, scale = normalised(x)
        return scale * grad * weight, (grad * normal).sum(0)


class RMSNormUpToItsWeight(RMSNorm):
    """The gradient for the weight goes by x, and not by what is normalised: the same where rms(x) is 1."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        return RMSNorm.backward(ctx, grad)[0], (grad * x).sum(0)


class LogSumExp(torch.autograd.Function):
    """log Σ exp x over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad.unsqueeze(-1) * x.softmax(-1)


class Matmul(torch.autograd.Function):
    """x·w of square matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad


class Transposed(Matmul):
    """The gradient for the weight is the transpose of the right one, which has its shape."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, grad.T @ x


class CrossEntropy(torch.autograd.Function):
    """Mean of −log p(target); its gradient is computed in the forward, and only scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        p = logits.softmax(-1)
        gradient = (p - torch.nn.functional.one_hot(target, logits.shape[-1])) / len(target)
        ctx.save_for_backward(gradient)
        return -p.gather(-1, target.unsqueeze(-1)).log().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


class CrossEntropyOfOne(CrossEntropy):
    """Takes the gradient of a loss for 1: it is the last thing computed, is it not?"""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient.clone(), None


class CrossEntropyInTheLogits(CrossEntropy):
    """Saves memory: the gradient is written over the logits, which the caller may still need."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        loss = CrossEntropy.forward(ctx, logits, target)
        p = logits.softmax(-1)
        logits.copy_((p - torch.nn.functional.one_hot(target, logits.shape[-1])) / len(target))
        return loss


class CrossEntropyScaledInPlace(CrossEntropy):
    """Scales the gradient that it has kept in place: the next backward through the same graph scales it again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.gradient = (logits.softmax(-1) - torch.nn.functional.one_hot(target, logits.shape[-1])) / len(target)
        return torch.nn.functional.cross_entropy(logits, target)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.gradient.mul_(grad), None


def normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / rms(x), and 1 / rms(x)."""
    scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return x * scale, scale


def upstream() -> list[Case]:
    """All of them."""
    x, target = normal(3, 4), torch.tensor([0, 3, 1])
    norm, square = (x, positive(4, seed=1)), (normal(3, 3), normal(3, 3, seed=1))
    return [
        Case("mean of the gradient", OfTheMean.apply, (x,), wrong=("x",)),
        Case("first entry of the gradient", OfTheFirst.apply, (x,), wrong=("x",)),
        Case("gradient taken for ones", OfOnes.apply, (x,), wrong=("x",), failed=("undefined_grads",)),
        Case("sign of the gradient lost", OfItsSize.apply, (x,), wrong=("x",)),
        Case("softmax", Softmax.apply, (x,)),
        Case("softmax less a plain mean", SoftmaxOfTheMean.apply, (x,), wrong=("x",), failed=("second_order",)),
        Case("RMSNorm", RMSNorm.apply, norm, entries={"second_order": "passed"}),
        Case("RMSNorm right at weight 1", RMSNormAtWeightOne.apply, norm, wrong=("x",)),
        Case("RMSNorm without its projection", RMSNormWithoutProjection.apply, norm, wrong=("x",)),
        Case("RMSNorm, weight's gradient by x", RMSNormUpToItsWeight.apply, norm, wrong=("weight",)),
        Case("log-sum-exp", LogSumExp.apply, (x,)),
        Case("matrix product", Matmul.apply, square),
        Case("matrix product, one gradient transposed", Transposed.apply, square, wrong=("weight",)),
        Case("cross entropy with integer targets", CrossEntropy.apply, (x, target)),
        Case(
            "cross entropy whose gradient is taken for 1",
            CrossEntropyOfOne.apply,
            (x, target),
            wrong=("logits",),
            failed=("undefined_grads",),
        ),
        Case("gradient kept in the logits", CrossEntropyInTheLogits.apply, (x, target), failed=("inputs_kept",)),
        Case("kept gradient scaled in place", CrossEntropyScaledInPlace.apply, (x, target), failed=("repeatable",)),
    ]
