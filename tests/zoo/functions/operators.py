"""Operators of torch.library: with a backward, with lists, with an argument that they write to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.zoo.functions.case import Case, normal


@torch.library.custom_op("torch_gradcheck_zoo::silu_mul", mutates_args=())
def silu_mul(x: Tensor, gate: Tensor) -> Tensor:
    """x·gate·σ(gate)."""
    return x * torch.nn.functional.silu(gate)


@torch.library.custom_op("torch_gradcheck_zoo::silu_mul_wrong", mutates_args=())
def silu_mul_wrong(x: Tensor, gate: Tensor) -> Tensor:
    """The same with a term missing in its backward."""
    return x * torch.nn.functional.silu(gate)


@torch.library.custom_op("torch_gradcheck_zoo::weighted_sum", mutates_args=())
def weighted_sum(tensors: Sequence[Tensor], scale: float) -> Tensor:
    """Σ k·xₖ², k from 1 on, times `scale`."""
    return scale * torch.stack([k * x * x for k, x in enumerate(tensors, start=1)]).sum(0)


LIBRARY = torch.library.Library("torch_gradcheck_counting", "DEF")
LIBRARY.define("double(Tensor x, Tensor(a!) calls) -> Tensor")


def double_and_count(x: Tensor, calls: Tensor) -> Tensor:
    """2x; adds 1 to `calls`, as its schema says."""
    calls.add_(1)
    return 2 * x


LIBRARY.impl("double", double_and_count, "CompositeImplicitAutograd")


def saved_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Saves all inputs that are tensors."""
    ctx.save_for_backward(*[each for each in inputs if isinstance(each, Tensor)])


def silu_mul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The right one."""
    x, gate = ctx.saved_tensors
    sigma = gate.sigmoid()
    return grad * gate * sigma, grad * x * (sigma + gate * sigma * (1 - sigma))


def silu_mul_wrong_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Takes σ(gate) for a constant."""
    x, gate = ctx.saved_tensors
    sigma = gate.sigmoid()
    return grad * gate * sigma, grad * x * sigma


def save_list(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Saves the tensors of the list."""
    tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def weighted_sum_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None]:
    """2·k·xₖ·scale."""
    return [2 * ctx.scale * k * x * grad for k, x in enumerate(ctx.saved_tensors, start=1)], None


silu_mul.register_autograd(silu_mul_backward, setup_context=saved_inputs)
silu_mul_wrong.register_autograd(silu_mul_wrong_backward, setup_context=saved_inputs)
weighted_sum.register_autograd(weighted_sum_backward, setup_context=save_list)


def operators() -> list[Case]:
    """All of them."""
    x, gate, calls = normal(3, 4), normal(3, 4, seed=1), torch.zeros(2, dtype=torch.int64)
    counting = torch.ops.torch_gradcheck_counting.double.default
    kept = {"inputs_kept": "passed"}
    return [
        Case("custom operator", silu_mul, (x, gate), entries=kept),
        Case("custom operator, term missing", silu_mul_wrong, (x, gate), wrong=("gate",)),
        Case("custom operator on a list", weighted_sum, ([x, gate, x + gate], 0.5)),
        Case("custom operator that writes to an argument", counting, (x, calls), entries=kept),
    ]
