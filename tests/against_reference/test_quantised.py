"""Kernels of quantised numbers: float8 tensors are judged like any other, and integers passed as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_function, check_module

FLOAT8 = torch.float8_e4m3fn


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def statuses(report: Report) -> dict[str, str]:
    return {row.name: str(row.status) for row in report}


class Product(torch.autograd.Function):
    """x·w of float8 and bfloat16, in float32; the gradient of w may lack a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.factor = factor
        return (x.float() @ w.float()).bfloat16()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        dy = grads[0].float()
        return (dy @ w.float().mT).to(FLOAT8), (ctx.factor * x.float().mT @ dy).bfloat16(), None


@pytest.mark.parametrize("factor", [1.0, 0.5], ids=["right", "wrong"])
def test_an_input_in_float8_is_on_trial(factor: float) -> None:
    inputs = (drawn(5, 6).to(FLOAT8).requires_grad_(), drawn(6, 4).bfloat16().requires_grad_())
    report = check_function(
        lambda x, w: Product.apply(x, w, factor),  # type: ignore[no-untyped-call]
        inputs,
        reference=lambda x, w: x.to(w.dtype) @ w,
    )
    assert statuses(report) == {"x": "match", "w": "match" if factor == 1 else "mismatch", "output": "match"}


class Layer(nn.Module):
    """A linear layer, and a product with weights in float8 that are given to it."""

    def __init__(self, kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.kernel(x, w)


class Model(nn.Module):
    """Hands float8 on from one module to the next."""

    def __init__(self, kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6, dtype=torch.bfloat16), Layer(kernel)
        self.register_buffer("weight", drawn(6, 4).to(FLOAT8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x), self.weight)
        return y


def test_a_module_that_is_given_float8_is_the_culprit() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(w)
            return x @ w.to(x.dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            return 2 * grads[0] @ ctx.saved_tensors[0].to(grads[0].dtype).mT, None

    wrong, plain = Model(Doubled.apply), Model(lambda x, w: x @ w.to(x.dtype))  # type: ignore[arg-type]
    report = check_module(wrong, lambda y: y.float().square().mean(), drawn(5, 6).bfloat16(), reference=plain)
    assert report.culprit == "second"


class Quantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return (2 * x.float()).to(FLOAT8)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (ctx.factor * grads[0].float()).bfloat16(), None


@pytest.mark.parametrize("factor", [2.0, 1.0], ids=["right", "wrong"])
def test_an_output_in_float8_is_compared(factor: float) -> None:
    report = check_function(
        lambda x: Quantised.apply(x, factor),  # type: ignore[no-untyped-call]
        (drawn(5, 6).bfloat16(),),
        reference=lambda x: (2 * x).to(FLOAT8),
    )
    assert statuses(report) == {"x": "match" if factor == 2 else "mismatch", "output": "match"}


@pytest.mark.parametrize("detached", [False, True], ids=["right", "wrong"])
def test_weights_in_int8_are_passed_as_they_are_and_their_scales_are_on_trial(detached: bool) -> None:
    def kernel(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        scale = scale.detach() if detached else scale
        return (x.float() @ weight.float() * scale.float()).bfloat16()

    weight = torch.randint(-127, 127, (6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    inputs = (drawn(5, 6).bfloat16().requires_grad_(), weight, drawn(4).bfloat16().requires_grad_())
    report = check_function(kernel, inputs, reference=lambda x, weight, scale: x @ (weight.to(x.dtype) * scale))
    assert statuses(report) == {"x": "match", "scale": "mismatch" if detached else "match", "output": "match"}
