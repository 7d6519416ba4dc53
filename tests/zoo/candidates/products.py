"""Kernels that multiply matrices or look up rows: split-K, tiles, experts, dequantised weights, convolutions."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, BFLOAT16, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output

SPLIT = 32
"""Terms of a sum that one instance of a kernel adds up; no size below is a multiple."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x wᵀ + b."""
    return F.linear(x, weight, bias)


def split_k(a: Tensor, b: Tensor, parts: slice = slice(None), reverse: bool = False) -> Tensor:
    """a b in float32; the inner axis is split, and the parts are added up."""
    shares = [a[:, block] @ b[block] for block in blocks(a.shape[1], SPLIT)][parts]
    return sum(shares[::-1] if reverse else shares, torch.zeros(a.shape[0], b.shape[1]))


def linear_forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, parts: slice = slice(None)) -> Tensor:
    ctx.save_for_backward(x, weight)
    return (split_k(x.float(), weight.float().T, parts) + bias.float()).to(x.dtype)


def linear_backward(ctx: Any, dy: Tensor, parts: slice = slice(None)) -> Any:
    x, weight, d = in_float32(*ctx.saved_tensors, dy)
    return (d @ weight).to(dy.dtype), split_k(d.T, x, parts).to(dy.dtype), d.sum(0).to(dy.dtype)


def linear_backward_from_the_end(ctx: Any, dy: Tensor) -> Any:
    x, weight, d = in_float32(*ctx.saved_tensors, dy)
    db = torch.stack([d[block].sum(0) for block in reversed(blocks(len(d), SPLIT))]).sum(0)
    return split_k(d, weight, reverse=True).to(dy.dtype), split_k(d.T, x, reverse=True).to(dy.dtype), db.to(dy.dtype)


def linear_backward_adding_up(ctx: Any, dy: Tensor) -> Any:
    """Adds the share of every few rows to a gradient that is kept in the inputs' dtype."""
    x, weight, d = in_float32(*ctx.saved_tensors, dy)
    dw = torch.zeros(weight.shape, dtype=dy.dtype)
    for block in blocks(len(x), 2):
        dw += (d[block].T @ x[block]).to(dy.dtype)
    return (d @ weight).to(dy.dtype), dw, d.sum(0).to(dy.dtype)


def linear_kernel() -> Kernel:
    """A linear layer with split-K."""
    forward, backward = linear_forward, linear_backward
    return Kernel(
        "linear",
        linear,
        lambda draw: (draw.normal(33, 65), draw.normal(17, 65, scale=0.2), draw.normal(17)),
        right={
            "split-K": fused(forward, backward),
            "split-K from the end": fused(forward, linear_backward_from_the_end),
        },
        wrong={
            "last part of K lost": Wrong(fused(partial(forward, parts=slice(-1)), backward), ("output",)),
            "last part of weight lost": Wrong(fused(forward, partial(backward, parts=slice(-1))), ("weight",)),
            "1 % in weight": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("weight",)),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
            "one row of x": Wrong(fused(forward, with_gradient(backward, 0, mistakes.last_row_missing)), ("x",)),
            "one entry of weight": Wrong(fused(forward, with_gradient(backward, 1, mistakes.one_entry)), ("weight",)),
        },
        dtypes=ALL,
    )


def linear_of_many_rows_kernel() -> Kernel:
    """A linear layer of a long batch, where a sum in a low precision stands still."""
    return Kernel(
        "linear of many rows",
        linear,
        lambda draw: (1 + draw.normal(300, 17), draw.normal(9, 17), draw.normal(9)),
        right={"split-K": fused(linear_forward, linear_backward)},
        wrong={"added up in bfloat16": Wrong(fused(linear_forward, linear_backward_adding_up), ("weight",))},
        dtypes=(BFLOAT16,),
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b."""
    return a @ b


def tiled(a: Tensor, b: Tensor, tile: int = 16, garbage: float = 0.0) -> Tensor:
    """a b by tiles of rows, columns and of the inner axis, whose last tile is padded with what should be 0."""
    result = torch.full((a.shape[0], b.shape[1]), torch.nan)
    pad = -a.shape[1] % tile
    a, b = F.pad(a, (0, pad), value=garbage), F.pad(b, (0, 0, 0, pad), value=garbage)
    for rows in blocks(a.shape[0], tile):
        for columns in blocks(b.shape[1], tile):
            parts = [a[rows, inner] @ b[inner, columns] for inner in blocks(a.shape[1], tile)]
            result[rows, columns] = torch.stack(parts).sum(0)
    return result


def matmul_forward(ctx: Any, a: Tensor, b: Tensor, garbage: float = 0.0) -> Tensor:
    ctx.save_for_backward(a, b)
    return tiled(a.float(), b.float(), garbage=garbage).to(a.dtype)


def matmul_backward(ctx: Any, dy: Tensor, garbage: float = 0.0) -> Any:
    a, b, d = in_float32(*ctx.saved_tensors, dy)
    return tiled(d, b.T.contiguous(), garbage=garbage).to(dy.dtype), (a.T @ d).to(dy.dtype)


def first_tile_missing(tensor: Tensor) -> Tensor:
    """0 in the first tile of 16 by 16."""
    spoiled = tensor.clone()
    spoiled[:16, :16] = 0
    return spoiled


def first_tile_one_percent(tensor: Tensor) -> Tensor:
    """2 % too large in the first tile of 16 by 16."""
    spoiled = tensor.float()
    spoiled[:16, :16] *= 1.02
    return spoiled.to(tensor.dtype)


def matmul_kernel() -> Kernel:
    """A product by tiles."""
    forward, backward = matmul_forward, matmul_backward
    return Kernel(
        "matmul",
        matmul,
        lambda draw: (draw.normal(33, 21), draw.normal(21, 18)),
        right={"tiles": fused(forward, backward)},
        wrong={
            "a tile missing": Wrong(fused(forward, with_gradient(backward, 0, first_tile_missing)), ("a",)),
            "a tile by 2 %": Wrong(fused(forward, with_gradient(backward, 0, first_tile_one_percent)), ("a",)),
            "tail not masked": Wrong(fused(partial(forward, garbage=0.5), backward), ("output",)),
            "tail of a not masked": Wrong(fused(forward, partial(backward, garbage=0.5)), ("a",)),
            "one column of b": Wrong(fused(forward, with_gradient(backward, 1, mistakes.last_column_missing)), ("b",)),
            "1 % in output": Wrong(fused(with_output(forward, one_percent), backward), ("output",)),
        },
        dtypes=ALL,
    )


STARTS = (0, 5, 5, 17, 23)
"""Where the rows of each of four experts start, the second has none, and where they end."""


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """Rows of each expert times its own matrix."""
    return torch.cat([x[a:b] @ weight[k] for k, (a, b) in enumerate(pairwise(STARTS))])


def grouped_forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    return torch.bmm(x.float()[:, None], weight.float()[experts()])[:, 0].to(x.dtype)


def experts(late: int = 0) -> Tensor:
    """The expert of each row; `late`: the third starts so many rows too late."""
    starts = torch.tensor(STARTS) + late * torch.tensor([0, 0, 0, 1, 0])
    return torch.repeat_interleave(torch.arange(4), starts.diff())


def grouped_backward(ctx: Any, dy: Tensor, late: int = 0, first: int = 0) -> Any:
    x, weight, d = in_float32(*ctx.saved_tensors, dy)
    dx = torch.bmm(weight[experts()], d[..., None])[..., 0]
    shares = x[..., None] * d[:, None]
    dw = torch.zeros(weight.shape).index_add_(0, experts(late)[first:], shares[first:])
    return dx.to(dy.dtype), dw.to(dy.dtype)


def grouped_kernel() -> Kernel:
    """The products of a mixture of experts."""
    forward, backward = grouped_forward, grouped_backward
    return Kernel(
        "grouped matmul",
        grouped,
        lambda draw: (draw.normal(23, 6), draw.normal(4, 6, 5)),
        right={"by rows": fused(forward, backward)},
        wrong={
            "boundary off by one": Wrong(fused(forward, partial(backward, late=1)), ("weight",)),
            "first row lost": Wrong(fused(forward, partial(backward, first=1)), ("weight",)),
            "last expert missing": Wrong(
                fused(forward, with_gradient(backward, 1, mistakes.last_row_missing)), ("weight",)
            ),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
        },
    )


def dequantized(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x times the transposed weight scale · codes, of one scale a group of 8 columns."""
    weight = codes.to(x.dtype).unflatten(-1, (-1, 8)) * scale[..., None]
    return x @ weight.flatten(-2).T


def dequantized_forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    ctx.save_for_backward(x, codes, scale)
    weight = codes.float() * scale.float().repeat_interleave(8, -1)
    return (x.float() @ weight.T).to(x.dtype)


def dequantized_backward(ctx: Any, dy: Tensor, group: int = 8, scaled: bool = True) -> Any:
    x, codes, scale, d = in_float32(*ctx.saved_tensors, dy)
    weight = codes * scale.repeat_interleave(8, -1) if scaled else codes
    dw = (d.T @ x) * codes
    dscale = dw.unflatten(-1, (-1, 8))[..., :group].sum(-1)
    return (d @ weight).to(dy.dtype), None, dscale.to(dy.dtype)


def dequantized_kernel() -> Kernel:
    """A linear layer of integers with scales."""
    forward, backward = dequantized_forward, dequantized_backward
    return Kernel(
        "dequantized linear",
        dequantized,
        lambda draw: (draw.normal(13, 24), draw.integers(15, 10, 24) - 7, draw.uniform(0.02, 0.1, 10, 3)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "scale forgotten": Wrong(fused(forward, partial(backward, scaled=False)), ("x",)),
            "group too short": Wrong(fused(forward, partial(backward, group=7)), ("scale",)),
        },
        dtypes=ALL,
    )


def embedding_forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
    ctx.save_for_backward(ids)
    ctx.rows = len(weight)
    return F.embedding(ids, weight)


def looked_up(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of a matrix."""
    return F.embedding(ids, weight)


def embedding_backward(ctx: Any, dy: Tensor, first: int = 0, added: bool = True) -> Any:
    (ids,) = ctx.saved_tensors
    flat, d = ids.reshape(-1)[first:], dy.reshape(-1, dy.shape[-1])[first:].float()
    dw = torch.zeros(ctx.rows, dy.shape[-1])
    dw.index_put_((flat,), d, accumulate=added)
    return None, dw.to(dy.dtype)


def embedding_backward_in_sorted_order(ctx: Any, dy: Tensor) -> Any:
    (ids,) = ctx.saved_tensors
    flat, d = ids.reshape(-1), dy.reshape(-1, dy.shape[-1]).float()
    order = flat.argsort(descending=True)
    dw = torch.zeros(ctx.rows, dy.shape[-1]).index_add_(0, flat[order], d[order])
    return None, dw.to(dy.dtype)


def embedding_backward_of_bytes(ctx: Any, dy: Tensor) -> Any:
    """The offset of a row in its memory overflows."""
    (ids,) = ctx.saved_tensors
    offsets = (ids.reshape(-1) * dy.shape[-1]).to(torch.int8).long() % (ctx.rows * dy.shape[-1]) // dy.shape[-1]
    dw = torch.zeros(ctx.rows, dy.shape[-1]).index_add_(0, offsets, dy.reshape(-1, dy.shape[-1]).float())
    return None, dw.to(dy.dtype)


def embedding_kernel() -> Kernel:
    """Rows of a matrix that are looked up several times."""
    forward, backward = embedding_forward, embedding_backward
    return Kernel(
        "embedding",
        looked_up,
        lambda draw: (draw.integers(30, 4, 11), draw.normal(30, 7)),
        right={
            "float32 inside": fused(forward, backward),
            "sorted": fused(forward, embedding_backward_in_sorted_order),
        },
        wrong={
            "written, not added": Wrong(fused(forward, partial(backward, added=False)), ("weight",)),
            "first token lost": Wrong(fused(forward, partial(backward, first=1)), ("weight",)),
            "offset overflows": Wrong(fused(forward, embedding_backward_of_bytes), ("weight",)),
        },
    )


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu of a causal convolution, channel by channel, as in Mamba: (batch, channels, time)."""
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Before silu, by taps, in float32."""
    taps, time = weight.shape[1], x.shape[-1]
    padded = F.pad(x, (taps - 1, 0))
    shifted = [weight[:, k, None] * padded[..., k : k + time] for k in range(taps)]
    return sum(shifted, bias[:, None])


def causal_conv_forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight, bias)
    return F.silu(convolved(*in_float32(x, weight, bias))).to(x.dtype)


def causal_conv_backward(
    ctx: Any, dy: Tensor, batch: slice = slice(None), late: int = 0, activated: bool = True
) -> Any:
    x, weight, bias, d = in_float32(*ctx.saved_tensors, dy)
    taps, time = weight.shape[1], x.shape[-1]
    y = convolved(x, weight, bias)
    d = d * y.sigmoid() * (1 + y * (1 - y.sigmoid())) if activated else d
    behind, padded = F.pad(d, (0, taps - 1)), F.pad(x, (taps - 1, late))
    dx = sum([weight[:, taps - 1 - k, None] * behind[..., k : k + time] for k in range(taps)], torch.zeros(()))
    per_sample = torch.stack([(d * padded[..., k + late : k + late + time]).sum(-1) for k in range(taps)], -1)
    return dx.to(dy.dtype), per_sample[batch].sum(0).to(dy.dtype), d.sum((0, 2)).to(dy.dtype)


def causal_conv_kernel() -> Kernel:
    """A causal convolution with its activation, which is computed again in the backward."""
    forward, backward = causal_conv_forward, causal_conv_backward
    return Kernel(
        "causal conv",
        causal_conv,
        lambda draw: (draw.normal(3, 5, 17), draw.normal(5, 4, scale=0.5), draw.normal(5, scale=0.1)),
        right={"recomputed": fused(forward, backward)},
        wrong={
            "weight of one batch": Wrong(fused(forward, partial(backward, batch=slice(1))), ("weight",)),
            "off by one": Wrong(fused(forward, partial(backward, late=1)), ("weight",)),
            "activation forgotten": Wrong(fused(forward, partial(backward, activated=False)), ("x", "weight", "bias")),
            "taps from the end": Wrong(fused(forward, with_gradient(backward, 1, lambda dw: dw.flip(-1))), ("weight",)),
        },
    )


def products() -> list[Kernel]:
    """All of them."""
    return [
        linear_kernel(),
        linear_of_many_rows_kernel(),
        matmul_kernel(),
        grouped_kernel(),
        dequantized_kernel(),
        embedding_kernel(),
        causal_conv_kernel(),
    ]
