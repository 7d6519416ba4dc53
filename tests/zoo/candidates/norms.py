"""Kernels that normalise: RMSNorm, with a residual too, LayerNorm, GroupNorm."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, BFLOAT16, Draws, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output, with_swapped

EPS = 1e-6
"""What RMSNorm adds to a mean square."""

ROWS = 8
"""Rows whose share of the weight's gradient one instance of a kernel adds up; no batch below is a multiple."""


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As in Llama: normalised in float32, rounded, times the weight."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return weight * y.to(x.dtype)


def rms_norm_forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    ctx.save_for_backward(x, weight, rstd)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def rms_norm_backward(ctx: Any, dy: Tensor, mean: float = 1.0) -> Any:
    x, weight, rstd, d = in_float32(*ctx.saved_tensors, dy)
    unit, m = x * rstd, d * weight
    dx = rstd * (m - mean * unit * (m * unit).mean(-1, keepdim=True))
    return dx.to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def rms_norm_forward_saving_unit(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Saves the normalised x, in its dtype."""
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    unit = (x.float() * rstd).to(x.dtype)
    ctx.save_for_backward(unit, weight, rstd)
    return unit * weight


def rms_norm_backward_of_saved_unit(ctx: Any, dy: Tensor) -> Any:
    unit, weight, rstd, d = in_float32(*ctx.saved_tensors, dy)
    m = d * weight
    return (rstd * (m - unit * (m * unit).mean(-1, keepdim=True))).to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def rms_norm_backward_in_parts(ctx: Any, dy: Tensor, parts: slice = slice(None), rows: int = ROWS) -> Any:
    """Each block of rows leaves its share of the weight's gradient; these are added up behind it."""
    x, _, rstd, d = in_float32(*ctx.saved_tensors, dy)
    shares = [(d[block] * x[block] * rstd[block]).sum(0) for block in blocks(len(x), rows)]
    return rms_norm_backward(ctx, dy)[0], torch.stack(shares)[parts].sum(0).to(dy.dtype)


def rms_norm_forward_of_fast_root(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The reciprocal root of a processor's own instruction: off by two units in its last place."""
    mean_square = x.float().square().mean(-1, keepdim=True) + EPS
    rstd = torch.rsqrt(mean_square) * (1 - 2.0**-22)
    ctx.save_for_backward(x, weight, rstd)
    return (x.float() * rstd * weight.float()).to(x.dtype)


def rms_norm_backward_adding_up(ctx: Any, dy: Tensor) -> Any:
    """Adds up the weight's gradient row by row, in its own dtype."""
    x, _, rstd, d = in_float32(*ctx.saved_tensors, dy)
    dw = torch.zeros(x.shape[-1], dtype=dy.dtype)
    for row in (d * x * rstd).to(dy.dtype):
        dw += row
    return rms_norm_backward(ctx, dy)[0], dw


def rms_norm_backward_without_weight(ctx: Any, dy: Tensor) -> Any:
    x, _, rstd, d = in_float32(*ctx.saved_tensors, dy)
    unit = x * rstd
    return (rstd * (d - unit * (d * unit).mean(-1, keepdim=True))).to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def rms_norm_backward_without_eps(ctx: Any, dy: Tensor) -> Any:
    x, weight, _, d = in_float32(*ctx.saved_tensors, dy)
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True))
    unit, m = x * rstd, d * weight
    return (rstd * (m - unit * (m * unit).mean(-1, keepdim=True))).to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def rms_norm_backward_of_stale_rstd(ctx: Any, dy: Tensor) -> Any:
    x, weight, rstd, d = in_float32(*ctx.saved_tensors, dy)
    rstd = rstd.roll(1, 0)
    unit, m = x * rstd, d * weight
    return (rstd * (m - unit * (m * unit).mean(-1, keepdim=True))).to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def around_one(draw: Draws, size: int) -> Tensor:
    """Weights as of a trained model."""
    return draw.uniform(0.5, 1.5, size)


def small(draw: Draws) -> tuple[Tensor, Tensor]:
    """Rows of the size of √EPS."""
    return draw.normal(19, 33, scale=2e-3), around_one(draw, 33)


def rms_norm_kernel() -> Kernel:
    """RMSNorm with a weight."""
    forward, backward = rms_norm_forward, rms_norm_backward
    return Kernel(
        "rms norm",
        rms_norm,
        lambda draw: (draw.normal(19, 33), around_one(draw, 33)),
        right={
            "float32 inside": fused(forward, backward),
            "fast root": fused(rms_norm_forward_of_fast_root, backward),
            "normalised x saved": fused(rms_norm_forward_saving_unit, rms_norm_backward_of_saved_unit),
            "weight in parts": fused(forward, rms_norm_backward_in_parts),
        },
        wrong={
            "without the mean": Wrong(fused(forward, partial(backward, mean=0.0)), ("x",)),
            "90 % of the mean": Wrong(fused(forward, partial(backward, mean=0.9)), ("x",)),
            "without the weight": Wrong(fused(forward, rms_norm_backward_without_weight), ("x",)),
            "stale rstd": Wrong(fused(forward, rms_norm_backward_of_stale_rstd), ("x", "weight")),
            "last part lost": Wrong(fused(forward, partial(rms_norm_backward_in_parts, parts=slice(-1))), ("weight",)),
            "first row alone": Wrong(
                fused(forward, partial(rms_norm_backward_in_parts, parts=slice(1), rows=1)), ("weight",)
            ),
            "without eps": Wrong(fused(forward, rms_norm_backward_without_eps), ("x", "weight"), inputs=small),
            "1 % in weight": Wrong(
                fused(forward, with_gradient(backward, 1, one_percent)),
                ("weight",),
                inputs=lambda draw: (draw.normal(9, 100), around_one(draw, 100)),
            ),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
            "NaN in a tail": Wrong(fused(forward, with_gradient(backward, 0, mistakes.nan_in_tail)), ("x",)),
            "NaN in the output's tail": Wrong(fused(with_output(forward, mistakes.nan_in_tail), backward), ("output",)),
        },
        dtypes=ALL,
    )


def rms_norm_of_ones_kernel() -> Kernel:
    """RMSNorm whose weight is 1, as of a new model."""
    forward, backward = rms_norm_forward, rms_norm_backward
    return Kernel(
        "rms norm of ones",
        rms_norm,
        lambda draw: (draw.normal(7, 65), draw.uniform(1, 1, 65)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "without the mean": Wrong(fused(forward, partial(backward, mean=0.0)), ("x",)),
            "one column": Wrong(fused(forward, with_gradient(backward, 1, mistakes.last_column_missing)), ("weight",)),
        },
    )


def rms_norm_of_many_rows_kernel() -> Kernel:
    """RMSNorm of a long batch, where a sum in a low precision stands still."""
    return Kernel(
        "rms norm of many rows",
        rms_norm,
        lambda draw: (1 + draw.normal(700, 33), around_one(draw, 33)),
        seeds=2,
        right={"weight in parts": fused(rms_norm_forward, rms_norm_backward_in_parts)},
        wrong={
            "added up in bfloat16": Wrong(fused(rms_norm_forward, rms_norm_backward_adding_up), ("weight",)),
        },
        dtypes=(BFLOAT16,),
    )


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """RMSNorm of a sum, and the sum."""
    total = x + residual
    return rms_norm(total, weight), total


def add_rms_norm_forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm_forward(ctx, total, weight), total


def add_rms_norm_backward(ctx: Any, dy: Tensor, dtotal: Tensor, residual: float = 1.0, again: float = 0.0) -> Any:
    x, weight, rstd, d, dt = in_float32(*ctx.saved_tensors, dy, dtotal)
    unit, m = x * rstd, d * weight
    dx = rstd * (m - unit * (m * unit).mean(-1, keepdim=True)) + residual * dt
    return dx.to(dy.dtype), (dx + again * dt).to(dy.dtype), (d * unit).sum(0).to(dy.dtype)


def add_rms_norm_kernel() -> Kernel:
    """RMSNorm of x + residual with the sum as second output."""
    forward, backward = add_rms_norm_forward, add_rms_norm_backward
    return Kernel(
        "add rms norm",
        add_rms_norm,
        lambda draw: (draw.normal(11, 37), draw.normal(11, 37), around_one(draw, 37)),
        seeds=2,
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "residual lost": Wrong(fused(forward, partial(backward, residual=0.0)), ("x", "residual")),
            "residual twice": Wrong(fused(forward, partial(backward, again=1.0)), ("residual",)),
            "1 % in the sum": Wrong(fused(with_output(forward, one_percent, 1), backward), ("output[1]",)),
            "gradient None": Wrong(fused(forward, with_gradient(backward, 1, mistakes.dropped)), ("residual",)),
        },
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def layer_norm_forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, correction: int = 0) -> Tensor:
    mean = x.float().mean(-1, keepdim=True)
    rstd = torch.rsqrt(x.float().var(-1, keepdim=True, correction=correction) + 1e-5)
    ctx.save_for_backward(x, weight, mean, rstd)
    return ((x.float() - mean) * rstd * weight.float() + bias.float()).to(x.dtype)


def layer_norm_forward_of_squares(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The variance as E[x²] − E[x]², in float32."""
    f = x.float()
    mean = f.mean(-1, keepdim=True)
    rstd = torch.rsqrt(f.square().mean(-1, keepdim=True) - mean.square() + 1e-5)
    ctx.save_for_backward(x, weight, mean, rstd)
    return ((f - mean) * rstd * weight.float() + bias.float()).to(x.dtype)


def layer_norm_backward(ctx: Any, dy: Tensor, of_mean: float = 1.0, of_variance: float = 1.0) -> Any:
    x, weight, mean, rstd, d = in_float32(*ctx.saved_tensors, dy)
    unit, m = (x - mean) * rstd, d * weight
    by_variance = unit * (m * unit).mean(-1, keepdim=True)
    dx = rstd * (m - of_mean * m.mean(-1, keepdim=True) - of_variance * by_variance)
    return dx.to(dy.dtype), (d * unit).sum(0).to(dy.dtype), d.sum(0).to(dy.dtype)


def layer_norm_backward_with_atomics(ctx: Any, dy: Tensor) -> Any:
    """Blocks of rows add to the gradients of weight and bias in whatever order they come."""
    x, _, mean, rstd, d = in_float32(*ctx.saved_tensors, dy)
    dw, db = torch.zeros(x.shape[-1]), torch.zeros(x.shape[-1])
    for row in torch.randperm(len(x)).tolist():
        dw += d[row] * (x[row] - mean[row]) * rstd[row]
        db += d[row]
    return layer_norm_backward(ctx, dy)[0], dw.to(dy.dtype), db.to(dy.dtype)


def layer_norm_kernel() -> Kernel:
    """LayerNorm."""
    forward, backward = layer_norm_forward, layer_norm_backward
    return Kernel(
        "layer norm",
        layer_norm,
        lambda draw: (draw.normal(17, 29) + 0.5, around_one(draw, 29), draw.normal(29)),
        right={
            "float32 inside": fused(forward, backward),
            "variance of squares": fused(layer_norm_forward_of_squares, backward),
            "atomic adds": fused(forward, layer_norm_backward_with_atomics),
        },
        wrong={
            "without the mean": Wrong(fused(forward, partial(backward, of_mean=0.0)), ("x",)),
            "without the variance": Wrong(fused(forward, partial(backward, of_variance=0.0)), ("x",)),
            "variance by n − 1": Wrong(fused(partial(forward, correction=1), backward), ("output", "x", "weight")),
            "weight and bias swapped": Wrong(fused(forward, with_swapped(backward, 1, 2)), ("weight", "bias")),
            "bias of one column": Wrong(
                fused(forward, with_gradient(backward, 2, mistakes.one_column_shifted)), ("bias",)
            ),
            "1 % in bias": Wrong(
                fused(forward, with_gradient(backward, 2, one_percent)),
                ("bias",),
                inputs=lambda draw: (draw.normal(9, 100), around_one(draw, 100), draw.normal(100)),
            ),
        },
        dtypes=ALL,
    )


GROUPS = 2
"""Groups of channels."""


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GroupNorm of (batch, channels, length)."""
    return F.group_norm(x, GROUPS, weight, bias, 1e-5)


def group_norm_forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    f = x.float().reshape(len(x), GROUPS, -1)
    mean = f.mean(-1, keepdim=True)
    rstd = torch.rsqrt((f - mean).square().mean(-1, keepdim=True) + 1e-5)
    ctx.save_for_backward(x, weight, mean, rstd)
    unit = ((f - mean) * rstd).view(x.shape)
    return (unit * weight.float()[:, None] + bias.float()[:, None]).to(x.dtype)


def group_norm_backward(ctx: Any, dy: Tensor, batch: slice = slice(None), by_channel: bool = False) -> Any:
    x, weight, mean, rstd, d = in_float32(*ctx.saved_tensors, dy)
    grouped = (len(x), GROUPS, -1)
    unit, m = (x.reshape(grouped) - mean) * rstd, (d * weight[:, None]).reshape(grouped)
    mean_of = (
        (lambda t: t.view(x.shape).mean(-1, keepdim=True).expand(x.shape).reshape(grouped))
        if by_channel
        else (lambda t: t.mean(-1, keepdim=True))
    )
    dx = (rstd * (m - mean_of(m) - unit * mean_of(m * unit))).view(x.shape)
    per_sample = (d * unit.view(x.shape)).sum(-1)
    return dx.to(dy.dtype), per_sample[batch].sum(0).to(dy.dtype), d.sum((0, 2)).to(dy.dtype)


def group_norm_kernel() -> Kernel:
    """GroupNorm."""
    forward, backward = group_norm_forward, group_norm_backward
    return Kernel(
        "group norm",
        group_norm,
        lambda draw: (draw.normal(3, 6, 11), around_one(draw, 6), draw.normal(6)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "weight of one batch": Wrong(fused(forward, partial(backward, batch=slice(1))), ("weight",)),
            "means by channel": Wrong(fused(forward, partial(backward, by_channel=True)), ("x",)),
        },
    )


def norms() -> list[Kernel]:
    """All of them."""
    return [
        rms_norm_kernel(),
        rms_norm_of_ones_kernel(),
        rms_norm_of_many_rows_kernel(),
        add_rms_norm_kernel(),
        layer_norm_kernel(),
        group_norm_kernel(),
    ]
