"""Functions with a rule for forward mode or for vmap: right rules, and wrong ones beside a right backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal


class Sine(torch.autograd.Function):
    """sin(x)·scale, with a rule for forward mode."""

    slope = 1.0

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return scale * x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.scale = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * ctx.scale * x.cos(), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return x_t * ctx.scale * x.cos()


class SineWithWrongTangent(Sine):
    """The rule for forward mode forgets the scale."""

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return x_t * x.cos()


class SineWithFailingTangent(Sine):
    """The rule for forward mode asks for what nobody has saved."""

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: Any) -> Tensor:
        _, weight = ctx.saved_tensors
        return x_t * weight


class Generated(Sine):
    """Its rule for vmap is made by torch."""

    generate_vmap_rule = True


class GeneratedWithWrongTangent(SineWithWrongTangent):
    """vmap works; forward mode is wrong all the same."""

    generate_vmap_rule = True


class RunningSum(torch.autograd.Function):
    """The running sum along the last axis, with a rule for vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.cumsum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.flip(-1).cumsum(-1).flip(-1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int]:
        return RunningSum.apply(x.movedim(in_dims[0], 0)), 0


class RunningSumAlongTheBatch(RunningSum):
    """The rule for vmap puts the batch last, and so sums along it."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int]:
        return RunningSumAlongTheBatch.apply(x.movedim(in_dims[0], -1)), x.dim() - 1


class RunningSumInFront(RunningSum):
    """The rule for vmap takes dimension 0 for the batch, wherever it is."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int]:
        return RunningSumInFront.apply(x), 0


class Scaled(torch.autograd.Function):
    """x·w; its rule for vmap thinks that both are batched."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grad * weight, grad * x

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        dim_x, dim_weight = in_dims
        return Scaled.apply(x.movedim(dim_x, 0), weight.movedim(dim_weight, 0)), 0


def forward_modes() -> list[Case]:
    """All of them."""
    x = normal(3, 4)
    right = {"forward_ad": "passed", "vmap": "not_applicable"}
    mapped = {"vmap": "passed"}
    return [
        Case("jvp", Sine.apply, (x, 2.0), entries=right),
        Case("wrong jvp", SineWithWrongTangent.apply, (x, 2.0), failed=("forward_ad",)),
        Case("jvp that raises", SineWithFailingTangent.apply, (x, 2.0), failed=("forward_ad",)),
        Case("generate_vmap_rule", Generated.apply, (x, 2.0), entries={"forward_ad": "passed", "vmap": "passed"}),
        Case("wrong jvp, vmap works", GeneratedWithWrongTangent.apply, (x, 2.0), failed=("forward_ad",)),
        Case("vmap rule by hand", RunningSum.apply, (x,), entries=mapped | {"forward_ad": "not_applicable"}),
        Case("vmap rule that sums along the batch", RunningSumAlongTheBatch.apply, (x,), failed=("vmap",)),
        Case("vmap rule for dimension 0 only", RunningSumInFront.apply, (x,), failed=("vmap",)),
        Case("vmap rule for batched inputs only", Scaled.apply, (x, normal(3, 4, seed=1)), failed=("vmap",)),
    ]
