"""The operations of the benchmark of kernels: a plain form in torch's operations, and gradients by formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fused_kernels import Argument, Operation

EPS = 1e-6
"""Of the normalisations."""

ROWS, COLUMNS = 259, 24
"""Of most inputs: no multiple of a tile."""

# Pointwise --------------------------------------------------------------------------------------------------------


def silu_mul(a: Tensor, b: Tensor) -> Tensor:
    """Of a gated MLP."""
    return functional.silu(a) * b


def silu_mul_backward(g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of `silu_mul`."""
    s = torch.sigmoid(a)
    return g * b * s * (1 + a * (1 - s)), g * a * s


def gelu(x: Tensor) -> Tensor:
    """By tanh."""
    return functional.gelu(x, approximate="tanh")


def gelu_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    """Of `gelu`."""
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 0.134145 * x * x)),)


def squared_relu(x: Tensor) -> Tensor:
    """Of Primer."""
    return functional.relu(x).square()


def rotary(x: Tensor) -> Tensor:
    """Rotary embedding of (heads, time, channels)."""
    cos, sin = _angles(x)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rotary_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    """Of `rotary`: the rotation back."""
    cos, sin = _angles(x)
    a, b = g.chunk(2, -1)
    return (torch.cat([a * cos + b * sin, b * cos - a * sin], -1),)


def _angles(x: Tensor) -> tuple[Tensor, Tensor]:
    time = torch.arange(x.shape[-2], dtype=torch.float64)[:, None]
    angles = time * 100.0 ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=torch.float64)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


# Rows -------------------------------------------------------------------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    """Along rows."""
    return torch.softmax(x, -1)


def softmax_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    """Of `softmax`."""
    y = torch.softmax(x, -1)
    return (y * (g - (g * y).sum(-1, keepdim=True)),)


def log_softmax(x: Tensor) -> Tensor:
    """Along rows."""
    return torch.log_softmax(x, -1)


def log_softmax_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    """Of `log_softmax`."""
    return (g - torch.softmax(x, -1) * g.sum(-1, keepdim=True),)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """One loss a row."""
    return functional.cross_entropy(scores, labels, reduction="none")


def cross_entropy_by_formula(scores: Tensor, labels: Tensor) -> Tensor:
    """The same from the logarithm of a sum."""
    return torch.logsumexp(scores, -1) - scores.gather(-1, labels[:, None])[:, 0]


def cross_entropy_backward(g: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, None]:
    """Of `cross_entropy`."""
    hot = functional.one_hot(labels, scores.shape[-1]).to(scores.dtype)
    return g[:, None] * (torch.softmax(scores, -1) - hot), None


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def l2_normalize_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    """Of `l2_normalize`."""
    r = torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)
    return (r * (g - x * r * r * (g * x).sum(-1, keepdim=True)),)


def decayed_sum(x: Tensor, decay: Tensor) -> Tensor:
    """y of each column is x there plus sigmoid(decay) · y of the column before: a linear recurrence."""
    state, states = torch.zeros_like(x[:, 0]), []
    for k in range(x.shape[1]):
        state = torch.sigmoid(decay[:, k]) * state + x[:, k]
        states.append(state)
    return torch.stack(states, 1)


def decayed_sum_backward(g: Tensor, x: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Of `decayed_sum`, backwards in time, from recomputed states."""
    s, y = torch.sigmoid(decay), decayed_sum(x, decay)
    before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
    state, states = torch.zeros_like(g[:, 0]), []
    for k in reversed(range(x.shape[1])):
        state = g[:, k] + (s[:, k + 1] * state if k + 1 < x.shape[1] else 0)
        states.append(state)
    dx = torch.stack(states[::-1], 1)
    return dx, dx * before * s * (1 - s)


# Rows with shared arguments ---------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over rows."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def layer_norm_by_formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by its formula."""
    return _standardized(x)[0] * weight + bias


def layer_norm_backward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    """Of `layer_norm`."""
    n, r = _standardized(x)
    d = g * weight
    dx = r * (d - d.mean(-1, keepdim=True) - n * (d * n).mean(-1, keepdim=True))
    return dx, (g * n).sum(0), g.sum(0)


def _standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    centered = x - x.mean(-1, keepdim=True)
    r = torch.rsqrt(centered.square().mean(-1, keepdim=True) + EPS)
    return centered * r, r


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Over rows, as Llama has it."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of `rms_norm`."""
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    n, d = x * r, g * weight
    return r * (d - n * (d * n).mean(-1, keepdim=True)), (g * n).sum(0)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """`rms_norm` of a sum."""
    return rms_norm(x + residual, weight)


def add_rms_norm_backward(g: Tensor, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `add_rms_norm`."""
    dx, dw = rms_norm_backward(g, x + residual, weight)
    return dx, dx, dw


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b."""
    return functional.linear(x, weight, bias)


def linear_backward(g: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    """Of `linear`."""
    return g @ weight, g.T @ x, g.sum(0)


def swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """The first half of a gated MLP."""
    return silu_mul(x @ gate.T, x @ up.T)


def swiglu_backward(g: Tensor, x: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `swiglu`."""
    da, db = silu_mul_backward(g, x @ gate.T, x @ up.T)
    return da @ gate + db @ up, da.T @ x, db.T @ x


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The last layer and its loss in one, one loss a row."""
    return cross_entropy(x @ weight.T, labels)


def linear_cross_entropy_backward(g: Tensor, x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, None]:
    """Of `linear_cross_entropy`."""
    scores, _ = cross_entropy_backward(g, x @ weight.T, labels)
    return scores @ weight, scores.T @ x, None


# Attention --------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (heads, time, channels)."""
    return torch.softmax(_scores(q, k), -1) @ v


def attention_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `attention`, with the sum of g · output in place of that over the scores, as in flash attention."""
    p = torch.softmax(_scores(q, k), -1)
    ds = p * (g @ v.mT - (g * (p @ v)).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return ds @ k, ds.mT @ q, p.mT @ g


def _scores(q: Tensor, k: Tensor) -> Tensor:
    time, channels = q.shape[-2:]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
    scores = q @ k.mT / math.sqrt(channels)
    return scores.masked_fill(hidden, -math.inf)


ROW, HEADS = Argument((ROWS, COLUMNS)), Argument((5, 37, 16))
SCALE = Argument((COLUMNS,), mean=1.0, scale=0.3, is_shared=True)
SHIFT = Argument((COLUMNS,), is_shared=True)
MATRIX = Argument((20, COLUMNS), scale=COLUMNS**-0.5, is_shared=True)
LABELS = Argument((ROWS,), classes=20)

OPERATIONS = [
    Operation(silu_mul, silu_mul, silu_mul_backward, {"a": ROW, "b": ROW}),
    Operation(gelu, gelu, gelu_backward, {"x": ROW}),
    Operation(squared_relu, squared_relu, lambda g, x: (g * 2 * functional.relu(x),), {"x": ROW}),
    Operation(rotary, rotary, rotary_backward, {"x": HEADS}),
    Operation(softmax, softmax, softmax_backward, {"x": ROW}, is_reduced=True),
    Operation(log_softmax, log_softmax, log_softmax_backward, {"x": ROW}, is_reduced=True),
    Operation(
        cross_entropy,
        cross_entropy_by_formula,
        cross_entropy_backward,
        {"scores": Argument((ROWS, 20)), "labels": LABELS},
        is_reduced=True,
    ),
    Operation(l2_normalize, l2_normalize, l2_normalize_backward, {"x": ROW}),
    Operation(decayed_sum, decayed_sum, decayed_sum_backward, {"x": Argument((67, 9)), "decay": Argument((67, 9))}),
    Operation(layer_norm, layer_norm_by_formula, layer_norm_backward, {"x": ROW, "weight": SCALE, "bias": SHIFT}),
    Operation(rms_norm, rms_norm, rms_norm_backward, {"x": ROW, "weight": SCALE}),
    Operation(add_rms_norm, add_rms_norm, add_rms_norm_backward, {"x": ROW, "residual": ROW, "weight": SCALE}),
    Operation(linear, linear, linear_backward, {"x": ROW, "weight": MATRIX, "bias": Argument((20,), is_shared=True)}),
    Operation(swiglu, swiglu, swiglu_backward, {"x": ROW, "gate": MATRIX, "up": MATRIX}),
    Operation(
        linear_cross_entropy,
        lambda x, weight, labels: cross_entropy_by_formula(x @ weight.T, labels),
        linear_cross_entropy_backward,
        {"x": ROW, "weight": MATRIX, "labels": LABELS},
    ),
    Operation(attention, attention, attention_backward, {"q": HEADS, "k": HEADS, "v": HEADS}),
]
"""Sixteen; with three dtypes each they are 48 kernels."""
