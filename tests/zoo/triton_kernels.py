"""Two kernels in Triton with their backwards, silu(a)·b and attention by an online softmax, right and with mistakes.

They run on the CPU by Triton's interpreter, which `tests/conftest.py` asks for: what Triton defines itself is made for
the interpreter, or for a GPU, when Triton is imported.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd import Function

BLOCK = 16
"""Rows or columns of a tile of attention; the shapes of the tests are no multiples of it."""

ENTRIES = 512
"""Entries of a block of silu(a)·b."""


@triton.jit
def _silu_mul(a_ptr, b_ptr, y_ptr, size, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (SCALE * a * tl.sigmoid(a) * b).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul_backward(dy_ptr, a_ptr, b_ptr, da_ptr, db_ptr, size, MISTAKE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    da = dy * b * s * (1 + a * (1 - s))
    if MISTAKE == "1 % too large":
        da = 1.01 * da
    if MISTAKE == "tail not written":
        inside = inside & (at < size // BLOCK * BLOCK)
    tl.store(da_ptr + at, da.to(da_ptr.dtype.element_ty), mask=inside)
    tl.store(db_ptr + at, (dy * a * s).to(db_ptr.dtype.element_ty), mask=inside)


class SiluMul(Function):
    """silu(a)·b, computed in float32.

    Args:
        in_place: the backward writes da and db over the saved a and b, as kernels do to save memory.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, mistake: str = "", in_place: bool = False) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        ctx.save_for_backward(a, b)
        ctx.mistake, ctx.in_place = mistake, in_place
        y = torch.empty_like(a)
        scale = 1.01 if mistake == "output 1 % too large" else 1.0
        _silu_mul[(triton.cdiv(a.numel(), ENTRIES),)](a, b, y, a.numel(), SCALE=scale, BLOCK=ENTRIES)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        dy = grads[0].contiguous()
        da, db = (a, b) if ctx.in_place else (torch.zeros_like(a), torch.zeros_like(b))
        blocks = triton.cdiv(a.numel(), ENTRIES)
        _silu_mul_backward[(blocks,)](dy, a, b, da, db, a.numel(), MISTAKE=ctx.mistake, BLOCK=ENTRIES)
        return da, db, None, None


def silu_mul(a: Tensor, b: Tensor) -> Tensor:
    """The plain silu(a)·b."""
    return nn.functional.silu(a) * b


class FusedSiluMul(nn.Module):
    """A gated unit by the kernel."""

    mistake = ""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(SiluMul.apply(self.gate(x), self.up(x), self.mistake))  # type: ignore[no-any-return, no-untyped-call]


class PlainSiluMul(FusedSiluMul):
    """The same by plain operations."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu_mul(self.gate(x), self.up(x)))  # type: ignore[no-any-return]


@triton.jit
def _tile(ptr, head, rows, row_count, ROW_LENGTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head in float32; zeros outside."""
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < row_count) & (columns[None, :] < ROW_LENGTH)
    at = (head * row_count + rows[:, None]) * ROW_LENGTH + columns[None, :]
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _put(ptr, tile, head, rows, row_count, ROW_LENGTH: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < row_count) & (columns[None, :] < ROW_LENGTH)
    at = (head * row_count + rows[:, None]) * ROW_LENGTH + columns[None, :]
    tl.store(ptr + at, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scores(q, k, rows, columns, n, SCALE: tl.constexpr, CAUSAL: tl.constexpr, MISTAKE: tl.constexpr):
    """q kᵀ · scale of a tile; −∞ at keys that do not exist or lie in the future."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
    if MISTAKE != "tail not masked":
        scores = tl.where(columns[None, :] < n, scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(columns[None, :] <= rows[:, None], scores, float("-inf"))
    return scores


@triton.jit
def _attention(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    m,
    n,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    MISTAKE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q = _tile(q_ptr, head, rows, m, D, BLOCK_D)
    largest = tl.zeros([BLOCK], dtype=tl.float32) - float("inf")
    total = tl.zeros([BLOCK], dtype=tl.float32)
    o = tl.zeros([BLOCK, BLOCK_D], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        k = _tile(k_ptr, head, columns, n, D, BLOCK_D)
        v = _tile(v_ptr, head, columns, n, D, BLOCK_D)
        scores = _scores(q, k, rows, columns, n, SCALE, CAUSAL, MISTAKE)
        now = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp(scores - now[:, None])
        shrunk = tl.exp(largest - now)
        total = total * shrunk + tl.sum(p, 1)
        o = o * shrunk[:, None] + tl.dot(p, v, input_precision="ieee")
        largest = now
    _put(o_ptr, o / total[:, None], head, rows, m, D, BLOCK_D)
    tl.store(lse_ptr + head * m + rows, largest + tl.log(total), mask=rows < m)


@triton.jit
def _attention_backward(
    do_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    m,
    n,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    MISTAKE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dk and dv of one tile of keys; what it adds to dq goes there by atomic adds."""
    head = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = _tile(k_ptr, head, columns, n, D, BLOCK_D)
    v = _tile(v_ptr, head, columns, n, D, BLOCK_D)
    dk = tl.zeros([BLOCK, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], dtype=tl.float32)
    end = m
    if MISTAKE == "last block skipped":
        end = m // BLOCK * BLOCK
    for start in range(0, end, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        q = _tile(q_ptr, head, rows, m, D, BLOCK_D)
        do = _tile(do_ptr, head, rows, m, D, BLOCK_D)
        lse = tl.load(lse_ptr + head * m + rows, mask=rows < m, other=float("inf"))
        delta = tl.load(delta_ptr + head * m + rows, mask=rows < m, other=0.0)
        p = tl.exp(_scores(q, k, rows, columns, n, SCALE, CAUSAL, MISTAKE) - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        if MISTAKE != "scale missing":
            ds = ds * SCALE
        dv += tl.dot(tl.trans(p), do, input_precision="ieee")
        dk += tl.dot(tl.trans(ds), q, input_precision="ieee")
        if MISTAKE == "sums in bfloat16":
            dv = dv.to(tl.bfloat16).to(tl.float32)
        dq = tl.dot(ds, k, input_precision="ieee")
        lengths = tl.arange(0, BLOCK_D)
        inside = (rows[:, None] < m) & (lengths[None, :] < D)
        tl.atomic_add(dq_ptr + (head * m + rows[:, None]) * D + lengths[None, :], dq, mask=inside)
    if MISTAKE == "1 % too large":
        dv = 1.01 * dv
    _put(dk_ptr, dk, head, columns, n, D, BLOCK_D)
    _put(dv_ptr, dv, head, columns, n, D, BLOCK_D)


class Attention(Function):
    """softmax(q kᵀ / √d) v of heads, tile by tile, in float32.

    Args:
        q: shape (heads, queries, d).
        k, v: shape (heads, keys, d).
        causal: query i sees the keys 0 to i.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mistake: str = "") -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        heads, m, d = q.shape
        o, lse = torch.empty_like(q), q.new_empty((heads, m), dtype=torch.float32)
        ctx.options = {
            "D": d,
            "SCALE": d**-0.5,
            "CAUSAL": causal,
            "MISTAKE": mistake,
            "BLOCK": BLOCK,
            "BLOCK_D": max(BLOCK, triton.next_power_of_2(d)),  # a GPU multiplies no smaller tiles
        }
        _attention[(triton.cdiv(m, BLOCK), heads)](q, k, v, o, lse, m, k.shape[1], **ctx.options)
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        do, (heads, m, _), n = grads[0].contiguous(), q.shape, k.shape[1]
        delta = (do.float() * o.float()).sum(-1)
        dq, dk, dv = torch.zeros_like(q, dtype=torch.float32), torch.empty_like(k), torch.empty_like(v)
        grid = (triton.cdiv(n, BLOCK), heads)
        _attention_backward[grid](do, q, k, v, lse, delta, dq, dk, dv, m, n, **ctx.options)
        return dq.to(q.dtype), dk, dv, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The plain softmax(q kᵀ / √d) v."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v
