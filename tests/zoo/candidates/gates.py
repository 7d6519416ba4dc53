"""Kernels that compute entry by entry: gated activations, dropout, an optimizer's step, scaling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, FLOAT32, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output, with_swapped

BLOCK = 64
"""Entries that an instance of a tiled kernel computes; no size below is a multiple."""


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    return F.silu(gate) * up


def swiglu_forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
    ctx.save_for_backward(gate, up)
    a, b = in_float32(gate, up)
    return (F.silu(a) * b).to(gate.dtype)


def swiglu_backward(ctx: Any, dy: Tensor) -> Any:
    gate, up, d = in_float32(*ctx.saved_tensors, dy)
    sigmoid = gate.sigmoid()
    return (d * up * sigmoid * (1 + gate * (1 - sigmoid))).to(dy.dtype), (d * gate * sigmoid).to(dy.dtype)


def swiglu_forward_in_tiles(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
    ctx.save_for_backward(gate, up)
    y = torch.full_like(gate, torch.nan)  # as memory that nobody has written to
    for tile in blocks(gate.numel(), BLOCK):
        a, b = in_float32(gate.reshape(-1)[tile], up.reshape(-1)[tile])
        y.view(-1)[tile] = (a * b / (1 + torch.exp(-a))).to(y.dtype)
    return y


def swiglu_backward_in_place(ctx: Any, dy: Tensor) -> Any:
    """Writes the gradients over the saved inputs, some rows at a time, as a kernel does that autograd does not see."""
    gate, up = [saved.data for saved in ctx.saved_tensors]
    for rows in blocks(len(gate), 8):
        a, b, d = in_float32(gate[rows], up[rows], dy[rows])
        silu, sigmoid = F.silu(a), a.sigmoid()
        gate[rows] = (d * b * (silu * (1 - sigmoid) + sigmoid)).to(dy.dtype)
        up[rows] = (d * silu).to(dy.dtype)
    return gate, up


def swiglu_backward_of_saved_sigmoid(ctx: Any, dy: Tensor) -> Any:
    """Saves what it can use again, in the inputs' dtype."""
    gate, up, d = in_float32(*ctx.saved_tensors, dy)
    sigmoid = gate.sigmoid().to(dy.dtype).float()
    return (d * up * (sigmoid + gate * sigmoid * (1 - sigmoid))).to(dy.dtype), (d * gate * sigmoid).to(dy.dtype)


def swiglu_backward_without_product_rule(ctx: Any, dy: Tensor) -> Any:
    gate, up, d = in_float32(*ctx.saved_tensors, dy)
    sigmoid = gate.sigmoid()
    return (d * up * sigmoid).to(dy.dtype), (d * gate * sigmoid).to(dy.dtype)


def swiglu_kernel() -> Kernel:
    """silu(gate) · up."""
    forward, backward = swiglu_forward, swiglu_backward
    return Kernel(
        "swiglu",
        swiglu,
        lambda draw: (draw.normal(33, 17, scale=2), draw.normal(33, 17)),
        right={
            "float32 inside": fused(forward, backward),
            "tiles": fused(swiglu_forward_in_tiles, backward),
            "in place over the inputs": fused(forward, swiglu_backward_in_place),
            "sigmoid saved": fused(forward, swiglu_backward_of_saved_sigmoid),
        },
        wrong={
            "1 % in gate": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("gate",)),
            "1 % in up": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("up",)),
            "1 % in output": Wrong(fused(with_output(forward, one_percent), backward), ("output",)),
            "one entry": Wrong(fused(forward, with_gradient(backward, 1, mistakes.one_entry)), ("up",)),
            "swapped": Wrong(fused(forward, with_swapped(backward, 0, 1)), ("gate", "up")),
            "product rule": Wrong(fused(forward, swiglu_backward_without_product_rule), ("gate",)),
            "tail missing": Wrong(fused(forward, with_gradient(backward, 0, mistakes.tail_missing(BLOCK))), ("gate",)),
            "output tail twice": Wrong(fused(with_output(forward, mistakes.tail_twice(BLOCK)), backward), ("output",)),
        },
        dtypes=ALL,
        breaks={"in place over the inputs": ("repeatable", "inputs_kept")},
    )


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) · up, by erf."""
    return F.gelu(gate) * up


def geglu_forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
    ctx.save_for_backward(gate, up)
    a, b = in_float32(gate, up)
    return (0.5 * a * (1 + torch.erf(a / math.sqrt(2))) * b).to(gate.dtype)


def geglu_backward(ctx: Any, dy: Tensor, density: float = 1 / math.sqrt(2 * math.pi)) -> Any:
    a, b, d = in_float32(*ctx.saved_tensors, dy)
    distribution = 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    slope = distribution + a * density * torch.exp(-0.5 * a * a)
    return (d * b * slope).to(dy.dtype), (d * a * distribution).to(dy.dtype)


def geglu_kernel() -> Kernel:
    """gelu(gate) · up by erf."""
    forward, backward = geglu_forward, geglu_backward
    return Kernel(
        "geglu",
        geglu,
        lambda draw: (draw.normal(5, 65), draw.normal(5, 65)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "no density": Wrong(fused(forward, partial(backward, density=0.0)), ("gate",)),
            "density without √2": Wrong(fused(forward, partial(backward, density=1 / math.sqrt(math.pi))), ("gate",)),
            "1 % in up": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("up",)),
            "derivative of tanh": Wrong(fused(forward, geglu_tanh_backward), ("gate", "up"), (FLOAT32,)),
        },
    )


def geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) · up, by tanh."""
    return F.gelu(gate, approximate="tanh") * up


ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715
"""The constants of the approximation by tanh."""


def geglu_tanh_forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
    ctx.save_for_backward(gate, up)
    a, b = in_float32(gate, up)
    return (0.5 * a * (1 + torch.tanh(ROOT * (a + CUBIC * a**3))) * b).to(gate.dtype)


def geglu_tanh_backward(ctx: Any, dy: Tensor, factor: float = 3.0) -> Any:
    a, b, d = in_float32(*ctx.saved_tensors, dy)
    tanh = torch.tanh(ROOT * (a + CUBIC * a**3))
    slope = 0.5 * (1 + tanh) + 0.5 * a * (1 - tanh * tanh) * ROOT * (1 + factor * CUBIC * a * a)
    return (d * b * slope).to(dy.dtype), (d * 0.5 * a * (1 + tanh)).to(dy.dtype)


def geglu_tanh_kernel() -> Kernel:
    """gelu(gate) · up by tanh."""
    forward, backward = geglu_tanh_forward, geglu_tanh_backward
    return Kernel(
        "geglu tanh",
        geglu_tanh,
        lambda draw: (draw.normal(100), draw.normal(100)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "derivative of the cube": Wrong(fused(forward, partial(backward, factor=1.0)), ("gate",)),
            "sign of up": Wrong(fused(forward, with_gradient(backward, 1, mistakes.negated)), ("up",)),
        },
        dtypes=ALL,
    )


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x)."""
    return F.softplus(x)


def softplus_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return (x.float().clamp(min=0) + torch.log1p(torch.exp(-x.float().abs()))).to(x.dtype)


def softplus_backward(ctx: Any, dy: Tensor, linear_from: float = 20.0) -> Tensor:
    x, d = in_float32(*ctx.saved_tensors, dy)
    return torch.where(x > linear_from, d, d * x.sigmoid()).to(dy.dtype)


def softplus_kernel() -> Kernel:
    """log(1 + exp x)."""
    forward, backward = softplus_forward, softplus_backward
    return Kernel(
        "softplus",
        softplus,
        lambda draw: (draw.normal(7, 29, scale=4),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "linear too early": Wrong(fused(forward, partial(backward, linear_from=2.0)), ("x",)),
            "gradient None": Wrong(fused(forward, with_gradient(backward, 0, mistakes.dropped)), ("x",)),
        },
    )


KEPT = 0.75
"""The share that dropout keeps."""


def dropout(x: Tensor, mask: Tensor) -> Tensor:
    """x · mask / KEPT, of a mask that is given."""
    return torch.where(mask, x / KEPT, torch.zeros_like(x))


def dropout_forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
    ctx.save_for_backward(mask)
    return (x.float() * mask * (1 / KEPT)).to(x.dtype)


def dropout_backward(ctx: Any, dy: Tensor, kept: float = KEPT) -> Any:
    (mask,) = ctx.saved_tensors
    return (dy.float() * mask * (1 / kept)).to(dy.dtype), None


def dropout_backward_of_another_mask(ctx: Any, dy: Tensor) -> Any:
    (mask,) = ctx.saved_tensors
    return (dy.float() * mask.roll(1, -1) / KEPT).to(dy.dtype), None


def dropout_kernel() -> Kernel:
    """Dropout with a mask that is given."""
    return Kernel(
        "dropout",
        dropout,
        lambda draw: (draw.normal(9, 37), draw.uniform(0, 1, 9, 37) < KEPT),
        right={"product with 1 / KEPT": fused(dropout_forward, dropout_backward)},
        wrong={
            "not rescaled": Wrong(fused(dropout_forward, partial(dropout_backward, kept=1.0)), ("x",)),
            "another mask": Wrong(fused(dropout_forward, dropout_backward_of_another_mask), ("x",)),
        },
        dtypes=ALL,
    )


TINY = 1e-3
"""What an optimizer adds to a root."""


def adam(parameter: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """A step of Adam with bias correction left out."""
    return parameter - 0.1 * mean / (square.sqrt() + TINY)


def adam_forward(ctx: Any, parameter: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    ctx.save_for_backward(mean, square)
    p, m, v = in_float32(parameter, mean, square)
    return (p - 0.1 * m / (v.sqrt() + TINY)).to(parameter.dtype)


def adam_backward(ctx: Any, dy: Tensor, half: float = 0.5) -> Any:
    m, v, d = in_float32(*ctx.saved_tensors, dy)
    inverse = 1 / (v.sqrt() + TINY)
    of_square = d * 0.1 * m * inverse * inverse * half * v.rsqrt()
    return dy.clone(), (-0.1 * d * inverse).to(dy.dtype), of_square.to(dy.dtype)


def adam_kernel() -> Kernel:
    """A fused step of an optimizer."""
    return Kernel(
        "adam",
        adam,
        lambda draw: (draw.normal(13, 11), draw.normal(13, 11), draw.uniform(0.1, 2, 13, 11)),
        right={"float32 inside": fused(adam_forward, adam_backward)},
        wrong={
            "root without ½": Wrong(fused(adam_forward, partial(adam_backward, half=1.0)), ("square",)),
            "1 % in mean": Wrong(fused(adam_forward, with_gradient(adam_backward, 1, one_percent)), ("mean",)),
        },
    )


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x · scale, of one number in float32, as of a loss that is scaled."""
    return (x * scale).to(x.dtype)


def scaled_forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
    ctx.save_for_backward(x, scale)
    return (x.float() * scale).to(x.dtype)


def scaled_backward(ctx: Any, dy: Tensor) -> Any:
    x, scale, d = in_float32(*ctx.saved_tensors, dy)
    return (d * scale).to(dy.dtype), (x * d).sum()


def scaled_backward_in_blocks(ctx: Any, dy: Tensor) -> Any:
    x, scale, d = in_float32(*ctx.saved_tensors, dy)
    parts = [(x.reshape(-1)[tile] * d.reshape(-1)[tile]).sum() for tile in blocks(x.numel(), BLOCK)]
    return (d * scale).to(dy.dtype), sum(reversed(parts), torch.zeros(()))


def scaled_kernel() -> Kernel:
    """x · scale."""
    forward, backward = scaled_forward, scaled_backward
    return Kernel(
        "scaled",
        scaled,
        lambda draw: (draw.normal(21, 19), draw.uniform(1.2, 2, dtype=FLOAT32)),
        right={
            "float32 inside": fused(forward, backward),
            "sum in blocks from the end": fused(forward, scaled_backward_in_blocks),
        },
        wrong={
            "scale forgotten": Wrong(fused(forward, lambda ctx, dy: (dy.clone(), backward(ctx, dy)[1])), ("x",)),
            "scale doubled": Wrong(fused(forward, with_gradient(backward, 1, mistakes.times(2))), ("scale",)),
        },
        dtypes=ALL,
    )


def gates() -> list[Kernel]:
    """All of them."""
    return [
        swiglu_kernel(),
        geglu_kernel(),
        geglu_tanh_kernel(),
        softplus_kernel(),
        dropout_kernel(),
        adam_kernel(),
        scaled_kernel(),
    ]
