"""Kernels that reduce an axis, or divide by what they reduce it to: sums, lengths, softmax, running sums."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, BFLOAT16, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output

EPS = 1e-6
"""What is added to a sum of squares."""

BLOCK = 32
"""Entries that one instance of a kernel reduces; no length below is a multiple."""


def total(x: Tensor) -> Tensor:
    """The sum of each row."""
    return x.sum(-1)


def total_forward(ctx: Any, x: Tensor, parts: slice = slice(None)) -> Tensor:
    ctx.shape = x.shape
    shares = [x[:, block].float().sum(-1) for block in blocks(x.shape[1], BLOCK)]
    return torch.stack(shares)[parts].flip(0).sum(0).to(x.dtype)


def total_forward_adding_up(ctx: Any, x: Tensor) -> Tensor:
    """Adds up in the dtype of the inputs."""
    ctx.shape = x.shape
    result = torch.zeros(len(x), dtype=x.dtype)
    for column in x.T:
        result += column
    return result


def total_backward(ctx: Any, dy: Tensor) -> Tensor:
    return dy[:, None].expand(ctx.shape)


def total_kernel() -> Kernel:
    """Sums of rows."""
    forward, backward = total_forward, total_backward
    return Kernel(
        "sum",
        total,
        lambda draw: (draw.uniform(0, 1, 9, 100),),
        right={"in blocks from the end": fused(forward, backward)},
        wrong={
            "last block lost": Wrong(fused(partial(forward, parts=slice(-1)), backward), ("output",)),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
        },
        dtypes=ALL,
    )


def long_total_kernel() -> Kernel:
    """Sums of long rows, that stand still in bfloat16."""
    return Kernel(
        "long sum",
        total,
        lambda draw: (draw.uniform(0, 1, 3, 700),),
        right={"in blocks from the end": fused(total_forward, total_backward)},
        wrong={"added up in bfloat16": Wrong(fused(total_forward_adding_up, total_backward), ("output",))},
        dtypes=(BFLOAT16,),
    )


def mean(x: Tensor) -> Tensor:
    """The mean of all."""
    return x.mean()


def mean_forward(ctx: Any, x: Tensor, block: int = 1) -> Tensor:
    ctx.shape = x.shape
    return (x.float().sum() / (x.numel() + -x.numel() % block)).to(x.dtype)


def mean_backward(ctx: Any, dy: Tensor, block: int = 1) -> Tensor:
    count = ctx.shape.numel()
    return (dy.float() / (count + -count % block)).to(dy.dtype).expand(ctx.shape)


def mean_kernel() -> Kernel:
    """The mean of all entries."""
    forward, backward = mean_forward, mean_backward
    return Kernel(
        "mean",
        mean,
        lambda draw: (1 + draw.normal(7, 15),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "of the padded number": Wrong(fused(forward, partial(backward, block=BLOCK)), ("x",)),
            "output of the padded number": Wrong(fused(partial(forward, block=BLOCK), backward), ("output",)),
            "one entry": Wrong(fused(forward, with_gradient(backward, 0, mistakes.one_entry)), ("x",)),
        },
    )


def log_sum_exp(x: Tensor) -> Tensor:
    """log Σ exp of each row."""
    return x.logsumexp(-1)


def log_sum_exp_forward(ctx: Any, x: Tensor) -> Tensor:
    largest = x.float().amax(-1)
    lse = largest + torch.exp(x.float() - largest[:, None]).sum(-1).log()
    ctx.save_for_backward(x, lse)
    return lse.to(x.dtype)


def log_sum_exp_backward(ctx: Any, dy: Tensor, shift: float = 0.0) -> Tensor:
    x, lse, d = in_float32(*ctx.saved_tensors, dy)
    return (torch.exp(x - lse[:, None] + shift) * d[:, None]).to(dy.dtype)


def log_sum_exp_backward_of_output(ctx: Any, dy: Tensor) -> Tensor:
    """Uses the log-sum-exp of the row above."""
    x, lse, d = in_float32(*ctx.saved_tensors, dy)
    return (torch.exp(x - lse.roll(1)[:, None]) * d[:, None]).to(dy.dtype)


def log_sum_exp_kernel() -> Kernel:
    """log Σ exp."""
    forward, backward = log_sum_exp_forward, log_sum_exp_backward
    return Kernel(
        "log-sum-exp",
        log_sum_exp,
        lambda draw: (draw.normal(11, 33, scale=2),),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "of another row": Wrong(fused(forward, log_sum_exp_backward_of_output), ("x",)),
            "shifted by 0.03": Wrong(fused(forward, partial(backward, shift=0.03)), ("x",)),
            "1 % in output": Wrong(fused(with_output(forward, one_percent), backward), ("output",)),
        },
    )


def length(x: Tensor) -> Tensor:
    """√ Σ x² of each row."""
    return torch.linalg.vector_norm(x, dim=-1)


def length_forward(ctx: Any, x: Tensor) -> Tensor:
    squares = [x[:, block].float().square().sum(-1) for block in blocks(x.shape[1], BLOCK)]
    norm = torch.stack(squares).sum(0).sqrt()
    ctx.save_for_backward(x, norm)
    return norm.to(x.dtype)


def length_backward(ctx: Any, dy: Tensor, divided: bool = True) -> Tensor:
    x, norm, d = in_float32(*ctx.saved_tensors, dy)
    return (d[:, None] * x / (norm[:, None] if divided else 1)).to(dy.dtype)


def length_kernel() -> Kernel:
    """The length of rows."""
    forward, backward = length_forward, length_backward
    return Kernel(
        "length",
        length,
        lambda draw: (draw.normal(6, 37),),
        right={"in blocks": fused(forward, backward)},
        wrong={
            "not divided": Wrong(fused(forward, partial(backward, divided=False)), ("x",)),
            "upstream gradient ignored": Wrong(
                fused(forward, lambda ctx, dy: backward(ctx, torch.ones_like(dy))), ("x",)
            ),
        },
        dtypes=ALL,
    )


def unit_rows(x: Tensor) -> Tensor:
    """x / ‖x‖ over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def unit_rows_forward(ctx: Any, x: Tensor) -> Tensor:
    rnorm = torch.rsqrt(x.float().square().sum(-1, keepdim=True) + EPS)
    y = (x.float() * rnorm).to(x.dtype)
    ctx.save_for_backward(y, rnorm)
    return y


def unit_rows_backward(ctx: Any, dy: Tensor, projected: float = 1.0, stale: int = 0) -> Tensor:
    y, rnorm, d = in_float32(*ctx.saved_tensors, dy)
    dx: Tensor = rnorm.roll(stale, 0) * (d - projected * y * (d * y).sum(-1, keepdim=True))
    return dx.to(dy.dtype)


def unit_rows_kernel() -> Kernel:
    """Rows divided by their length, from the saved result."""
    forward, backward = unit_rows_forward, unit_rows_backward
    return Kernel(
        "unit rows",
        unit_rows,
        lambda draw: (draw.normal(23, 9),),
        right={"from the result": fused(forward, backward)},
        wrong={
            "not projected": Wrong(fused(forward, partial(backward, projected=0.0)), ("x",)),
            "length of another row": Wrong(fused(forward, partial(backward, stale=1)), ("x",)),
        },
    )


def softmax(x: Tensor) -> Tensor:
    """Softmax of the last axis."""
    return F.softmax(x, -1)


def softmax_forward(ctx: Any, x: Tensor) -> Tensor:
    f = x.float()
    e = torch.exp(f - f.amax(-1, keepdim=True))
    y = (e / e.sum(-1, keepdim=True)).to(x.dtype)
    ctx.save_for_backward(y)
    return y


def softmax_forward_online(ctx: Any, x: Tensor, width: int | None = None, padding: float = -torch.inf) -> Tensor:
    """Block by block: the sum is rescaled where a block has a larger maximum; a last block is padded."""
    f, largest, total = x.float(), torch.full(x.shape[:-1], -torch.inf), torch.zeros(x.shape[:-1])
    for block in blocks(width or x.shape[-1], 16):
        tile = F.pad(f[..., block], (0, 16 - f[..., block].shape[-1]), value=padding)
        larger = torch.maximum(largest, tile.amax(-1))
        total = total * torch.exp(largest - larger) + torch.exp(tile - larger[..., None]).sum(-1)
        largest = larger
    y = (torch.exp(f - largest[..., None]) / total[..., None]).to(x.dtype)
    ctx.save_for_backward(y)
    return y


def softmax_backward(ctx: Any, dy: Tensor, width: int | None = None, weight: float = 1.0) -> Tensor:
    y, d = in_float32(*ctx.saved_tensors, dy)
    inner = (y * d)[..., :width].sum(-1, keepdim=True)
    return (y * (d - weight * inner)).to(dy.dtype)


def softmax_kernel() -> Kernel:
    """Softmax."""
    forward, backward = softmax_forward, softmax_backward
    return Kernel(
        "softmax",
        softmax,
        lambda draw: (draw.normal(9, 65, scale=2),),
        right={"float32 inside": fused(forward, backward), "online": fused(softmax_forward_online, backward)},
        wrong={
            "without the mean of v·y": Wrong(fused(forward, partial(backward, weight=0.0)), ("x",)),
            "sum without a tail": Wrong(fused(forward, partial(backward, width=48)), ("x",)),
            "tail not masked": Wrong(fused(partial(softmax_forward_online, padding=0.0), backward), ("output", "x")),
        },
        dtypes=ALL,
    )


def running(x: Tensor) -> Tensor:
    """Running sums of the last axis, in float32."""
    return x.float().cumsum(-1).to(x.dtype)


def running_forward(ctx: Any, x: Tensor, carried: bool = True) -> Tensor:
    return by_chunks(x.float(), carried).to(x.dtype)


def running_backward(ctx: Any, dy: Tensor, carried: bool = True, exclusive: float = 0.0) -> Tensor:
    behind = by_chunks(dy.float().flip(-1), carried).flip(-1)
    return (behind - exclusive * dy.float()).to(dy.dtype)


def by_chunks(x: Tensor, carried: bool = True) -> Tensor:
    """Running sums in each chunk, and the sum of what is before it."""
    before, chunks = torch.zeros(len(x), 1), []
    for block in blocks(x.shape[-1], BLOCK):
        chunks.append(x[:, block].cumsum(-1) + before)
        before = chunks[-1][:, -1:] if carried else before
    return torch.cat(chunks, -1)


def running_kernel() -> Kernel:
    """Running sums by chunks."""
    forward, backward = running_forward, running_backward
    return Kernel(
        "running sum",
        running,
        lambda draw: (draw.normal(3, 77),),
        right={"chunks": fused(forward, backward)},
        wrong={
            "nothing carried": Wrong(fused(forward, partial(backward, carried=False)), ("x",)),
            "without itself": Wrong(fused(forward, partial(backward, exclusive=1.0)), ("x",)),
            "from the start": Wrong(fused(forward, lambda ctx, dy: by_chunks(dy.float()).to(dy.dtype)), ("x",)),
            "output not carried": Wrong(fused(partial(forward, carried=False), backward), ("output",)),
        },
        dtypes=ALL,
    )


def reductions() -> list[Kernel]:
    """All of them."""
    return [
        total_kernel(),
        long_total_kernel(),
        mean_kernel(),
        log_sum_exp_kernel(),
        length_kernel(),
        unit_rows_kernel(),
        softmax_kernel(),
        running_kernel(),
    ]
