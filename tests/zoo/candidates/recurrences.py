"""Kernels of recurrences, by chunks or from saved states, beside step by step: scans, linear attention, delta rule."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, Draws, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, times, with_gradient, with_output, with_swapped

CHUNK = 4
"""Steps of a chunk; no time below is a multiple."""


def gated_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t−1} + b_t of (time, channels), in float32."""
    h, states = torch.zeros_like(b[0]).float(), []
    for gate, x in zip(a.float(), b.float(), strict=True):
        h = gate * h + x
        states.append(h)
    return torch.stack(states).to(b.dtype)


def scanned(a: Tensor, b: Tensor, carried: float = 1.0) -> Tensor:
    """The same by chunks: within one by products of gates, between them by the last state."""
    last, result = torch.zeros(b.shape[1:]), torch.empty_like(b)
    for chunk in blocks(len(b), CHUNK):
        gates = a[chunk].cumprod(0)
        within = gates * (b[chunk] / gates).cumsum(0)
        result[chunk] = within + carried * gates * last
        last = result[chunk][-1]
    return result


def gated_scan_forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
    h = scanned(*in_float32(a, b))
    ctx.save_for_backward(a, h)
    return h.to(b.dtype)


def gated_scan_backward(ctx: Any, dy: Tensor, before: int = 1, carried: float = 1.0) -> Any:
    a, h, d = in_float32(*ctx.saved_tensors, dy)
    gates = torch.cat([a[1:], torch.ones_like(a[:1])]).flip(0)
    db = scanned(gates, d.flip(0), carried).flip(0)
    states = torch.cat([torch.zeros_like(h[:before]), h[: len(h) - before]])
    return (db * states).to(dy.dtype), db.to(dy.dtype)


def gated_scan_backward_of_rounded_states(ctx: Any, dy: Tensor) -> Any:
    """Saves the states as it returns them."""
    a, h, d = in_float32(*ctx.saved_tensors, dy)
    dh, da, db = torch.zeros_like(d[0]), torch.zeros_like(d), torch.zeros_like(d)
    for t in reversed(range(len(d))):
        dh = dh + d[t]
        db[t] = dh
        da[t] = dh * h[t - 1].to(dy.dtype).float() if t else 0
        dh = dh * a[t]
    return da.to(dy.dtype), db.to(dy.dtype)


def gated_scan_kernel() -> Kernel:
    """A gated recurrence."""
    forward, backward = gated_scan_forward, gated_scan_backward
    return Kernel(
        "gated scan",
        gated_scan,
        lambda draw: (draw.uniform(0.6, 0.99, 11, 7), draw.normal(11, 7)),
        right={
            "chunks": fused(forward, backward),
            "states saved": fused(forward, gated_scan_backward_of_rounded_states),
        },
        wrong={
            "states not shifted": Wrong(fused(forward, partial(backward, before=0)), ("a",)),
            "nothing carried": Wrong(fused(forward, partial(backward, carried=0.0)), ("a", "b")),
            "swapped": Wrong(fused(forward, with_swapped(backward, 0, 1)), ("a", "b")),
            "1 % in b": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("b",)),
        },
        dtypes=ALL,
    )


def selective_scan(x: Tensor, delta: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As in Mamba: h_t = exp(δ_t A) h_{t−1} + δ_t x_t b_t and y_t = h_t c_t; x and δ of (time, channels)."""
    gates = torch.exp(delta.float()[..., None] * decay.float())
    entering = (delta.float() * x.float())[..., None] * b.float()[:, None]
    h, states = torch.zeros(decay.shape), []
    for gate, enters in zip(gates, entering, strict=True):
        h = gate * h + enters
        states.append(h)
    return (torch.stack(states) @ c.float()[..., None])[..., 0].to(x.dtype)


def selective_scan_forward(ctx: Any, x: Tensor, delta: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    states = states_of(*in_float32(x, delta, decay, b))
    ctx.save_for_backward(x, delta, decay, b, c)
    return torch.einsum("tdn,tn->td", states, c.float()).to(x.dtype)


def states_of(x: Tensor, delta: Tensor, decay: Tensor, b: Tensor) -> Tensor:
    """All states, (time, channels, width)."""
    gates = torch.exp(delta[..., None] * decay)
    return scanned(gates.flatten(1), (delta * x)[..., None].mul(b[:, None]).flatten(1)).view(gates.shape)


def selective_scan_backward(ctx: Any, dy: Tensor, step: float = 1.0, first: int = 0) -> Any:
    """Computes the states again."""
    x, delta, decay, b, c, d = in_float32(*ctx.saved_tensors, dy)
    states, gates = states_of(x, delta, decay, b), torch.exp(delta[..., None] * decay)
    behind = torch.cat([gates[1:], torch.ones_like(gates[:1])]).flip(0)
    dh = scanned(behind.flatten(1), (d[..., None] * c[:, None]).flip(0).flatten(1)).view(gates.shape).flip(0)
    before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
    dlog = dh * before * gates
    dx = (dh * b[:, None]).sum(-1) * delta
    ddelta = step * (dlog * decay).sum(-1) + (dh * b[:, None]).sum(-1) * x
    ddecay = (dlog * delta[..., None])[first:].sum(0)
    db, dc = (dh * (delta * x)[..., None]).sum(1), (states * d[..., None]).sum(1)
    return tuple(each.to(dy.dtype) for each in (dx, ddelta, ddecay, db, dc))


def selective_scan_kernel() -> Kernel:
    """A selective scan."""
    forward, backward = selective_scan_forward, selective_scan_backward
    return Kernel(
        "selective scan",
        selective_scan,
        lambda draw: (
            draw.normal(7, 3),
            draw.uniform(0.2, 1, 7, 3),
            draw.uniform(-1, -0.1, 3, 4),
            draw.normal(7, 4),
            draw.normal(7, 4),
        ),
        seeds=2,
        right={"chunks, states computed again": fused(forward, backward)},
        wrong={
            "δ of the gate forgotten": Wrong(fused(forward, partial(backward, step=0.0)), ("delta",)),
            "first steps of A lost": Wrong(fused(forward, partial(backward, first=4)), ("decay",)),
            "b and c swapped": Wrong(fused(forward, with_swapped(backward, 3, 4)), ("b", "c")),
            "gradient of c None": Wrong(fused(forward, with_gradient(backward, 4, mistakes.dropped)), ("c",)),
        },
    )


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Σ_{s ≤ t} (q_t · k_s) v_s, step by step, in float32."""
    state, states = torch.zeros(k.shape[1], v.shape[1]), []
    for written in k.float()[..., None] * v.float()[:, None]:
        state = state + written
        states.append(state)
    return (q.float()[:, None] @ torch.stack(states))[:, 0].to(q.dtype)


def by_state(q: Tensor, k: Tensor, v: Tensor, carried: float = 1.0, rounded: torch.dtype | None = None) -> Tensor:
    """The same by chunks; the state between them may be kept in a lower precision."""
    state, result = torch.zeros(k.shape[1], v.shape[1]), torch.empty(len(q), v.shape[1])
    for chunk in blocks(len(q), CHUNK):
        result[chunk] = (q[chunk] @ k[chunk].T).tril() @ v[chunk] + carried * q[chunk] @ state
        state = state + k[chunk].T @ v[chunk]
        state = state.to(rounded).float() if rounded else state
    return result


def linear_attention_forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, carried: float = 1.0) -> Tensor:
    ctx.save_for_backward(q, k, v)
    return by_state(*in_float32(q, k, v), carried=carried).to(q.dtype)


def linear_attention_backward(ctx: Any, dy: Tensor, of_q: float = 1.0, of_k: float = 1.0) -> Any:
    q, k, v, d = in_float32(*ctx.saved_tensors, dy)
    dq = by_state(d, v, k, of_q)
    back = [each.flip(0) for each in (q, k, v, d)]
    dk = by_state(back[2], back[3], back[0], of_k).flip(0)
    dv = by_state(back[1], back[0], back[3]).flip(0)
    return dq.to(dy.dtype), dk.to(dy.dtype), dv.to(dy.dtype)


def linear_attention_kernel() -> Kernel:
    """Linear attention by chunks."""
    forward, backward = linear_attention_forward, linear_attention_backward
    return Kernel(
        "linear attention",
        linear_attention,
        lambda draw: (draw.normal(7, 6), draw.normal(7, 6), draw.normal(7, 5)),
        right={"chunks": fused(forward, backward)},
        wrong={
            "state forgotten for q": Wrong(fused(forward, partial(backward, of_q=0.0)), ("q",)),
            "state forgotten for k": Wrong(fused(forward, partial(backward, of_k=0.0)), ("k",)),
            "state of output by 90 %": Wrong(fused(partial(forward, carried=0.9), backward), ("output",)),
            "1 % in v": Wrong(
                fused(forward, with_gradient(backward, 2, one_percent)),
                ("v",),
                inputs=lambda draw: (draw.normal(7, 6), draw.normal(7, 6), draw.normal(7, 65)),
            ),
        },
        dtypes=ALL,
    )


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """S_t = S_{t−1} + β_t k_t (v_t − k_t S_{t−1}) and y_t = q_t S_t, step by step, in float32."""
    state, states = torch.zeros(k.shape[1], v.shape[1]), []
    keys, wanted = k.float()[..., None], v.float()[:, None]
    for key, value, strength in zip(keys, wanted, beta.float(), strict=True):
        state = state + strength * key * (value - key.T @ state)
        states.append(state)
    return (q.float()[:, None] @ torch.stack(states))[:, 0].to(q.dtype)


def delta_rule_forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Solves for what is missing at all steps at once: (1 + tril(β k kᵀ, −1)) w = β v; then attends to it."""
    f, keys, values, b = in_float32(q, k, v, beta)
    lower = torch.eye(len(f)) + (b[:, None] * (keys @ keys.T)).tril(-1)
    written = torch.linalg.solve_triangular(lower, b[:, None] * values, upper=False)
    ctx.save_for_backward(q, k, v, beta, written)
    return ((f @ keys.T).tril() @ written).to(q.dtype)


def delta_rule_backward(ctx: Any, dy: Tensor, through_lower: float = 1.0, of_beta: float = 1.0) -> Any:
    q, k, v, beta, written, d = in_float32(*ctx.saved_tensors, dy)
    products, attended = k @ k.T, (q @ k.T).tril()
    lower = torch.eye(len(q)) + (beta[:, None] * products).tril(-1)
    dattended = (d @ written.T).tril()
    solved = torch.linalg.solve_triangular(lower.T, attended.T @ d, upper=True)
    dlower = -through_lower * (solved @ written.T).tril(-1)
    dproducts = beta[:, None] * dlower
    dq, dk = dattended @ k, dattended.T @ q + (dproducts + dproducts.T) @ k
    dbeta = (solved * v).sum(-1) + of_beta * (dlower * products).sum(-1)
    return tuple(each.to(dy.dtype) for each in (dq, dk, beta[:, None] * solved, dbeta))


def with_short_keys(draw: Draws) -> tuple[Tensor, Tensor]:
    """q, and k of length about 1, under which the recurrence stays finite."""
    return draw.normal(7, 5), draw.normal(7, 5, scale=0.45)


def delta_rule_kernel() -> Kernel:
    """The delta rule, by a triangular system."""
    forward, backward = delta_rule_forward, delta_rule_backward
    return Kernel(
        "delta rule",
        delta_rule,
        lambda draw: (*with_short_keys(draw), draw.normal(7, 15), draw.uniform(0.2, 1, 7)),
        seeds=2,
        right={"triangular system": fused(forward, backward)},
        wrong={
            "system held constant": Wrong(fused(forward, partial(backward, through_lower=0.0)), ("k", "beta")),
            "β of the system lost": Wrong(fused(forward, partial(backward, of_beta=0.0)), ("beta",)),
            "q and k swapped": Wrong(fused(forward, with_swapped(backward, 0, 1)), ("q", "k")),
            "2 % in output": Wrong(fused(with_output(forward, times(1.02)), backward), ("output",)),
        },
    )


def recurrences() -> list[Kernel]:
    """All of them."""
    return [gated_scan_kernel(), selective_scan_kernel(), linear_attention_kernel(), delta_rule_kernel()]
