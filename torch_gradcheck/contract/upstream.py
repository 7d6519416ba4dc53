"""The gradients that outputs are given in a backward, just as they are: in any memory layout, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from torch_gradcheck.gradients.accumulation import gradients_of


def gradients_under(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor | None],
    leaves: Sequence[torch.Tensor],
    *,
    keep_graph: bool = False,
) -> list[torch.Tensor | None]:
    """What a backward leaves in the `.grad` of the leaves, in which each output is given its cotangent.

    Args:
        outputs: of the function; one without a graph is given nothing.
        cotangents: each of the shape and dtype of its output, and handed on as the same tensor; None for no gradient,
            which the function is told of if it has another output or is asked for it all the same.
        leaves: the tensors whose gradients are wanted.
        keep_graph: for another backward through it.
    """
    return gradients_of(losses_giving(outputs, cotangents), leaves, keep_graph=keep_graph)


def losses_giving(outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Numbers whose backward gives each output its cotangent, as `gradients_under` says; one for each with a graph."""
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    return [_Upstream.apply(y, v) for y, v in pairs]  # type: ignore[no-untyped-call]


def gives_upstream(function: type[Function]) -> bool:
    """Whether a Function is no code of the user's, but gives outputs their gradients."""
    return function is _Upstream


class _Upstream(Function):
    """Stands for all that a loss computes of an output y: gives it the gradient v, or none.

    `torch.autograd.backward` with gradients of tensors imports sympy, half a second; the backward of a number does not.
    """

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, v: torch.Tensor | None) -> torch.Tensor:
        ctx.v = v
        return y.new_zeros((), dtype=torch.float32)  # where y is: the backward then waits for the kernels of y

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return ctx.v, None
