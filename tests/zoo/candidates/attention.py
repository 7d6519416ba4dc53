"""Kernels of attention: softmax block by block, with groups of queries, with its log-sum-exp; rotary embedding."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, Draws, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient, with_output, with_swapped

BLOCK = 8
"""Keys that are looked at together; no length below is a multiple."""


def scores_of(q: Tensor, k: Tensor, late: int = 0) -> Tensor:
    """q kᵀ / √d of (heads, time, width); −∞ where a key is later than its query."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + late)
    return scores.masked_fill(later, -torch.inf)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention."""
    return scores_of(q, k).softmax(-1) @ v


def causal_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention, and the log-sum-exp of its scores in float32."""
    scores = scores_of(q, k)
    return scores.softmax(-1) @ v, scores.float().logsumexp(-1)


def attended(q: Tensor, k: Tensor, v: Tensor, rounded: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp, online, in float32; P is rounded to a dtype before it meets v."""
    scores, heads = scores_of(q, k), q.shape[:-1]
    largest, total, result = torch.full(heads, -torch.inf), torch.zeros(heads), torch.zeros(*heads, v.shape[-1])
    for block in blocks(k.shape[-2], BLOCK):
        larger = torch.maximum(largest, scores[..., block].amax(-1))
        p, shrunk = torch.exp(scores[..., block] - larger[..., None]), torch.exp(largest - larger)
        total = total * shrunk + p.sum(-1)
        result = result * shrunk[..., None] + (p.to(rounded).float() if rounded else p) @ v[..., block, :]
        largest = larger
    return result / total[..., None], largest + total.log()


def attention_forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_rounded: bool = False) -> Tensor:
    return attention_forward_with_lse(ctx, q, k, v, is_rounded)[0]


def attention_forward_with_lse(
    ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_rounded: bool = False
) -> tuple[Tensor, Tensor]:
    result, lse = attended(*in_float32(q, k, v), rounded=q.dtype if is_rounded else None)
    y = result.to(q.dtype)
    ctx.save_for_backward(q, k, v, y, lse)
    return y, lse


def attention_backward(
    ctx: Any,
    dy: Tensor,
    dlse: Tensor | None = None,
    *,
    late: int = 0,
    delta: float = 1.0,
    scale_of_q: float | None = None,
    keys: int | None = None,
    is_rounded: bool = False,
) -> Any:
    """Recomputes P from the saved log-sum-exp."""
    q, k, v, y, lse, d = in_float32(*ctx.saved_tensors, dy)
    scale = 1 / math.sqrt(q.shape[-1])
    p = torch.exp(scores_of(q, k, late) - lse[..., None])
    ds = p * (d @ v.mT - delta * (d * y).sum(-1, keepdim=True) + (0 if dlse is None else dlse[..., None]))
    if is_rounded:
        p, ds = p.to(dy.dtype).float(), ds.to(dy.dtype).float()
    dq, dk, dv = ds @ k * (scale_of_q or scale), ds.mT @ q * scale, p.mT @ d
    for each in (dk, dv):
        each[..., keys or k.shape[-2] :, :] = 0
    return dq.to(dy.dtype), dk.to(dy.dtype), dv.to(dy.dtype)


def attention_backward_by_blocks(ctx: Any, dy: Tensor, last: int | None = None) -> Any:
    """Each block of keys makes its dk and dv, and adds its share to dq; from the last block to the first."""
    q, k, v, y, lse, d = in_float32(*ctx.saved_tensors, dy)
    p, delta = torch.exp(scores_of(q, k) - lse[..., None]), (d * y).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for block in blocks(k.shape[-2], BLOCK)[:last][::-1]:
        ds = p[..., block] * (d @ v[..., block, :].mT - delta) / math.sqrt(q.shape[-1])
        dq += ds @ k[..., block, :]
        dk[..., block, :], dv[..., block, :] = ds.mT @ q, p[..., block].mT @ d
    return dq.to(dy.dtype), dk.to(dy.dtype), dv.to(dy.dtype)


def attention_backward_by_exp2(ctx: Any, dy: Tensor) -> Any:
    """P as powers of 2, of scores that are scaled by log₂ e first, as fast kernels compute it."""
    q, k, v, y, lse, d = in_float32(*ctx.saved_tensors, dy)
    log2 = math.log2(math.e)
    scores = scores_of(q * log2, k)
    p = torch.exp2(scores - lse[..., None] * log2)
    ds = p * (d @ v.mT - (d * y).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return (ds @ k).to(dy.dtype), (ds.mT @ q).to(dy.dtype), (p.mT @ d).to(dy.dtype)


def one_head_negated(tensor: Tensor) -> Tensor:
    """The last head has the other sign."""
    spoiled = tensor.clone()
    spoiled[-1] *= -1
    return spoiled


def of_heads(draw: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of two heads."""
    return draw.normal(2, 19, 12), draw.normal(2, 19, 12), draw.normal(2, 19, 12)


def causal_kernel() -> Kernel:
    """Causal attention with a tail."""
    forward, backward = attention_forward, attention_backward
    return Kernel(
        "causal attention",
        causal,
        of_heads,
        right={
            "online": fused(forward, backward),
            "by blocks": fused(forward, attention_backward_by_blocks),
            "powers of 2": fused(forward, attention_backward_by_exp2),
            "P rounded": fused(partial(forward, is_rounded=True), partial(backward, is_rounded=True)),
        },
        wrong={
            "mask off by one": Wrong(fused(forward, partial(backward, late=1)), ("q", "k", "v")),
            "without delta": Wrong(fused(forward, partial(backward, delta=0.0)), ("q", "k")),
            "90 % of delta": Wrong(fused(forward, partial(backward, delta=0.9)), ("q", "k")),
            "scale of q": Wrong(fused(forward, partial(backward, scale_of_q=1.0)), ("q",)),
            "k and v swapped": Wrong(fused(forward, with_swapped(backward, 1, 2)), ("k", "v")),
            "last keys missing": Wrong(fused(forward, partial(backward, keys=16)), ("k", "v")),
            "last block missing": Wrong(
                fused(forward, partial(attention_backward_by_blocks, last=-1)), ("q", "k", "v")
            ),
            "sign of one head": Wrong(fused(forward, with_gradient(backward, 2, one_head_negated)), ("v",)),
            "1 % in q": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("q",)),
            "1 % in k": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("k",)),
            "1 % in output": Wrong(fused(with_output(forward, one_percent), backward), ("output",)),
            "NaN in a tail": Wrong(fused(forward, with_gradient(backward, 2, mistakes.nan_in_tail)), ("v",)),
        },
        dtypes=ALL,
    )


def causal_with_lse_kernel() -> Kernel:
    """Causal attention with its log-sum-exp, as ring attention needs it."""
    forward, backward = attention_forward_with_lse, attention_backward
    return Kernel(
        "attention and log-sum-exp",
        causal_with_lse,
        lambda draw: (draw.normal(1, 11, 12), draw.normal(1, 11, 12), draw.normal(1, 11, 12)),
        seeds=2,
        right={"online": fused(forward, backward)},
        wrong={
            "its gradient ignored": Wrong(fused(forward, lambda ctx, dy, _: backward(ctx, dy)), ("q", "k")),
            "log forgotten": Wrong(fused(with_output(forward, torch.exp, 1), backward), ("output[1]",)),
            "1 % in v": Wrong(fused(forward, with_gradient(backward, 2, one_percent)), ("v",)),
        },
    )


def in_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of more queries than keys."""
    times = len(q) // len(k)
    return causal(q, k.repeat_interleave(times, 0), v.repeat_interleave(times, 0))


def groups_forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ctx.times = len(q) // len(k)
    return attention_forward(ctx, q, k.repeat_interleave(ctx.times, 0), v.repeat_interleave(ctx.times, 0))


def groups_backward(ctx: Any, dy: Tensor, queries: slice = slice(None), interleaved: bool = True) -> Any:
    dq, dk, dv = attention_backward(ctx, dy.float())
    shape = (-1, ctx.times) if interleaved else (ctx.times, -1)
    of_group = 1 if interleaved else 0
    dk, dv = [each.unflatten(0, shape) for each in (dk, dv)]
    dk, dv = [(each[:, queries] if interleaved else each).sum(of_group) for each in (dk, dv)]
    return dq.to(dy.dtype), dk.to(dy.dtype), dv.to(dy.dtype)


def groups_kernel() -> Kernel:
    """Causal attention of four heads of queries and two of keys."""
    forward, backward = groups_forward, groups_backward
    return Kernel(
        "grouped attention",
        in_groups,
        lambda draw: (draw.normal(4, 11, 6), draw.normal(2, 11, 6), draw.normal(2, 11, 6)),
        right={"online": fused(forward, backward)},
        wrong={
            "one query of a group": Wrong(fused(forward, partial(backward, queries=slice(1))), ("k", "v")),
            "groups mixed up": Wrong(fused(forward, partial(backward, interleaved=False)), ("k", "v")),
        },
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, as in Llama: (heads, time, width)."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k, rotated by angles that are given."""
    return rotated(q, cos, sin), rotated(k, cos, sin)


def rotary_forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(cos, sin)
    both = [rotated(*in_float32(x, cos, sin)).to(x.dtype) for x in (q, k)]
    return both[0], both[1]


def rotary_backward(ctx: Any, dq: Tensor, dk: Tensor, sign: float = -1.0, sign_of_k: float = -1.0) -> Any:
    cos, sin = in_float32(*ctx.saved_tensors)
    return (
        rotated(dq.float(), cos, sign * sin).to(dq.dtype),
        rotated(dk.float(), cos, sign_of_k * sin).to(dk.dtype),
        None,
        None,
    )


def rotary_backward_late(ctx: Any, dq: Tensor, dk: Tensor) -> Any:
    """The angles of q are those of the next place."""
    cos, sin = in_float32(*ctx.saved_tensors)
    right = rotary_backward(ctx, dq, dk)
    return (rotated(dq.float(), cos.roll(-1, 0), -sin.roll(-1, 0)).to(dq.dtype), *right[1:])


def with_angles(draw: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k on trial, and the cosines and sines of angles."""
    angles = torch.arange(9)[:, None] * 10.0 ** -torch.arange(5)[None]
    cos, sin = angles.cos().to(draw.dtype), angles.sin().to(draw.dtype)
    return draw.normal(3, 9, 10).requires_grad_(), draw.normal(1, 9, 10).requires_grad_(), cos, sin


def rotary_kernel() -> Kernel:
    """Rotary embedding."""
    forward, backward = rotary_forward, rotary_backward
    return Kernel(
        "rotary",
        rotary,
        with_angles,
        seeds=2,
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "rotated on": Wrong(fused(forward, partial(backward, sign=1.0)), ("q",)),
            "rotated on, both": Wrong(fused(forward, partial(backward, sign=1.0, sign_of_k=1.0)), ("q", "k")),
            "place off by one": Wrong(fused(forward, rotary_backward_late), ("q",)),
        },
        dtypes=ALL,
    )


def attention() -> list[Kernel]:
    """All of them."""
    return [causal_kernel(), causal_with_lse_kernel(), groups_kernel(), rotary_kernel()]
