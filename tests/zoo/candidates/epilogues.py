"""Kernels of what follows a product: bias, dropout and residual in one, caps, squares, two halves that are packed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.gates import KEPT
from tests.zoo.candidates.kernel import ALL, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output

ROWS = 8
"""Rows whose share of the bias' gradient one instance of a kernel adds up; no batch below is a multiple."""


def bias_dropout_add(x: Tensor, bias: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
    """residual + dropout(x + bias)."""
    return residual + torch.where(mask, (x + bias) / KEPT, torch.zeros_like(x))


def bias_dropout_add_forward(ctx: Any, x: Tensor, bias: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
    ctx.save_for_backward(mask)
    a, b, r = in_float32(x, bias, residual)
    return (r + (a + b) * mask / KEPT).to(x.dtype)


def bias_dropout_add_backward(ctx: Any, dy: Tensor, masked: bool = True, rows: slice = slice(None)) -> Any:
    (mask,) = ctx.saved_tensors
    d = dy.float()
    dx = d * mask / KEPT
    of_bias = dx if masked else d / KEPT
    db = torch.stack([of_bias[rows][block].sum(0) for block in blocks(len(d[rows]), ROWS)]).sum(0)
    return dx.to(dy.dtype), db.to(dy.dtype), dy.clone(), None


def bias_dropout_add_kernel() -> Kernel:
    """Bias, dropout and residual."""
    forward, backward = bias_dropout_add_forward, bias_dropout_add_backward
    return Kernel(
        "bias, dropout, add",
        bias_dropout_add,
        lambda draw: (draw.normal(13, 9), draw.normal(9), draw.normal(13, 9), draw.uniform(0, 1, 13, 9) < KEPT),
        right={"bias by blocks of rows": fused(forward, backward)},
        wrong={
            "bias without the mask": Wrong(fused(forward, partial(backward, masked=False)), ("bias",)),
            "bias without the tail": Wrong(fused(forward, partial(backward, rows=slice(8))), ("bias",)),
            "path of the residual lost": Wrong(
                fused(forward, with_gradient(backward, 2, mistakes.dropped)), ("residual",)
            ),
        },
        dtypes=ALL,
    )


CAP = 3.0
"""Where capped scores end."""


def capped(x: Tensor) -> Tensor:
    """CAP tanh(x / CAP), as of the scores of Gemma."""
    return CAP * torch.tanh(x / CAP)


def capped_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return (CAP * torch.tanh(x.float() / CAP)).to(x.dtype)


def capped_backward(ctx: Any, dy: Tensor, inner: float = 1.0) -> Tensor:
    x, d = in_float32(*ctx.saved_tensors, dy)
    return (inner * d / torch.cosh(x / CAP).square()).to(dy.dtype)


def capped_kernel() -> Kernel:
    """Scores with a soft cap."""
    forward, backward = capped_forward, capped_backward
    return Kernel(
        "soft cap",
        capped,
        lambda draw: (draw.normal(5, 33, scale=2),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "divided by the cap": Wrong(fused(forward, partial(backward, inner=1 / CAP)), ("x",)),
            "not capped": Wrong(fused(forward, lambda ctx, dy: dy.clone()), ("x",)),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
        },
        dtypes=ALL,
    )


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)²."""
    return F.relu(x).square()


def squared_relu_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.float().clamp(min=0).square().to(x.dtype)


def squared_relu_backward(ctx: Any, dy: Tensor, from_: float = 0.0) -> Tensor:
    x, d = in_float32(*ctx.saved_tensors, dy)
    return torch.where(x > from_, 2 * x * d, torch.zeros_like(x)).to(dy.dtype)


def squared_relu_kernel() -> Kernel:
    """The square of what is positive."""
    forward, backward = squared_relu_forward, squared_relu_backward
    return Kernel(
        "squared relu",
        squared_relu,
        lambda draw: (draw.normal(99),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "not clamped": Wrong(fused(forward, partial(backward, from_=-torch.inf)), ("x",)),
            "output of the next entry": Wrong(fused(with_output(forward, lambda y: y.roll(1)), backward), ("output",)),
        },
    )


def packed_swiglu(x: Tensor) -> Tensor:
    """silu of the first half of the last axis times the second."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def packed_swiglu_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    gate, up = x.float().chunk(2, -1)
    return (gate * gate.sigmoid() * up).to(x.dtype)


def packed_swiglu_backward(ctx: Any, dy: Tensor, is_swapped: bool = False) -> Tensor:
    gate, up = ctx.saved_tensors[0].float().chunk(2, -1)
    sigmoid, d = gate.sigmoid(), dy.float()
    halves = [d * up * sigmoid * (1 + gate * (1 - sigmoid)), d * gate * sigmoid]
    return torch.cat(halves[::-1] if is_swapped else halves, -1).to(dy.dtype)


def second_half_one_percent(tensor: Tensor) -> Tensor:
    """1 % too large in the second half of the last axis."""
    first, second = tensor.chunk(2, -1)
    return torch.cat([first, one_percent(second)], -1)


def packed_swiglu_kernel() -> Kernel:
    """A gate and what it lets through in one tensor."""
    forward, backward = packed_swiglu_forward, packed_swiglu_backward
    return Kernel(
        "packed swiglu",
        packed_swiglu,
        lambda draw: (draw.normal(17, 42),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "halves swapped": Wrong(fused(forward, partial(backward, is_swapped=True)), ("x",)),
            "1 % in one half": Wrong(fused(forward, with_gradient(backward, 0, second_half_one_percent)), ("x",)),
            "one column": Wrong(fused(forward, with_gradient(backward, 0, mistakes.last_column_missing)), ("x",)),
        },
    )


def penalty(logits: Tensor) -> Tensor:
    """The mean square of log-sum-exp, in float32, that keeps logits small."""
    return logits.float().logsumexp(-1).square().mean()


def penalty_forward(ctx: Any, logits: Tensor) -> Tensor:
    lse = logits.float().logsumexp(-1)
    ctx.save_for_backward(logits, lse)
    return lse.square().sum() / len(lse)


def penalty_backward(ctx: Any, dy: Tensor, factor: float = 2.0) -> Tensor:
    logits, lse = ctx.saved_tensors
    slope = torch.exp(logits.float() - lse[:, None])
    return (factor * dy / len(lse) * lse[:, None] * slope).to(logits.dtype)


def penalty_kernel() -> Kernel:
    """The loss that keeps logits small."""
    forward, backward = penalty_forward, penalty_backward
    return Kernel(
        "log-sum-exp penalty",
        penalty,
        lambda draw: (draw.normal(9, 25),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "square without its 2": Wrong(fused(forward, partial(backward, factor=1.0)), ("logits",)),
            "last row missing": Wrong(
                fused(forward, with_gradient(backward, 0, mistakes.last_row_missing)), ("logits",)
            ),
        },
    )


def epilogues() -> list[Kernel]:
    """All of them."""
    return [
        bias_dropout_add_kernel(),
        capped_kernel(),
        squared_relu_kernel(),
        packed_swiglu_kernel(),
        penalty_kernel(),
    ]
