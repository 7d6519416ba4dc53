"""Promise: a kernel that computes in float32 out of sight is decided where a plain difference at a large step does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_gradcheck import Report, check_module

Array = NDArray[Any]


class Kernel(NamedTuple):
    """A kernel as its authors have it, written in numpy.

    Attributes:
        forward: from the arguments to the output.
        backward: from the output's gradient and the arguments to the arguments' gradients.
        shapes: of the arguments; the first is the input, the others are parameters.
    """

    forward: Callable[..., Array]
    backward: Callable[..., Sequence[Array]]
    shapes: tuple[tuple[int, ...], ...]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def swiglu(x: Array, gate: Array, up: Array) -> Array:
    return np.asarray(x @ gate * sigmoid(x @ gate) * (x @ up))


def swiglu_backward(g: Array, x: Array, gate: Array, up: Array) -> Sequence[Array]:
    a, b = x @ gate, x @ up
    s = sigmoid(a)
    da, db = g * b * s * (1 + a * (1 - s)), g * a * s
    return da @ gate.T + db @ up.T, x.T @ da, x.T @ db


def rms_norm(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-6)) * weight)


def rms_norm_backward(g: Array, x: Array, weight: Array) -> Sequence[Array]:
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-6))
    inner = (g * weight * x).mean(-1, keepdims=True)
    return r * g * weight - x * r**3 * inner, (g * x * r).sum(0)


LABELS = np.arange(6) % 5


def cross_entropy(x: Array, weight: Array) -> Array:
    return -np.log(softmax(x @ weight)[np.arange(len(x)), LABELS])


def cross_entropy_backward(g: Array, x: Array, weight: Array) -> Sequence[Array]:
    scores = softmax(x @ weight)
    scores[np.arange(len(x)), LABELS] -= 1
    scores *= g[:, None]
    return scores @ weight.T, x.T @ scores


def attention(x: Array, query: Array, key: Array, value: Array) -> Array:
    return np.asarray(softmax((x @ query) @ (x @ key).T) @ (x @ value))


def attention_backward(g: Array, x: Array, query: Array, key: Array, value: Array) -> Sequence[Array]:
    q, k, v = x @ query, x @ key, x @ value
    p = softmax(q @ k.T)
    dv, dp = p.T @ g, g @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    dq, dk = ds @ k, ds.T @ q
    return dq @ query.T + dk @ key.T + dv @ value.T, x.T @ dq, x.T @ dk, x.T @ dv


def scan(x: Array, decay: Array) -> Array:
    states = [np.zeros_like(x[0])]
    for row in x:
        states.append(sigmoid(decay) * states[-1] + row)
    return np.stack(states[1:])


def scan_backward(g: Array, x: Array, decay: Array) -> Sequence[Array]:
    states, a = np.concatenate([np.zeros_like(x[:1]), scan(x, decay)]), sigmoid(decay)
    dx, carried, da = np.zeros_like(x), np.zeros_like(x[0]), np.zeros_like(decay)
    for step in reversed(range(len(x))):
        carried = g[step] + a * carried
        dx[step], da = carried, da + carried * states[step]
    return dx, da * a * (1 - a)


KERNELS = {
    "swiglu": Kernel(swiglu, swiglu_backward, ((6, 8), (8, 5), (8, 5))),
    "rms norm": Kernel(rms_norm, rms_norm_backward, ((6, 8), (8,))),
    "cross entropy": Kernel(cross_entropy, cross_entropy_backward, ((6, 8), (8, 5))),
    "attention": Kernel(attention, attention_backward, ((6, 8), (8, 4), (8, 4), (8, 4))),
    "scan": Kernel(scan, scan_backward, ((6, 8), (8,))),
}


class InNumpy(torch.autograd.Function):
    """A kernel in a precision of its own, whatever it is given; the last gradient is `off` times the right one."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, dtype: type, off: float, *tensors: Tensor) -> Tensor:
        ctx.kernel, ctx.off = kernel, off
        ctx.arguments = [tensor.detach().numpy().astype(dtype) for tensor in tensors]
        return torch.from_numpy(np.ascontiguousarray(kernel.forward(*ctx.arguments))).to(tensors[0].dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        grad_output = g.detach().numpy().astype(ctx.arguments[0].dtype)
        *gradients, last = ctx.kernel.backward(grad_output, *ctx.arguments)
        last = last * last.dtype.type(ctx.off)
        return None, None, None, *(torch.from_numpy(np.ascontiguousarray(each)).to(g) for each in (*gradients, last))


class Layer(nn.Module):
    """A kernel behind a linear layer, so that the gradient of its input is on trial as well."""

    def __init__(self, kernel: Kernel, dtype: type, off: float) -> None:
        super().__init__()
        self.kernel, self.dtype, self.off = kernel, dtype, off
        (_, width), *shapes = kernel.shapes
        self.before = nn.Linear(width, width)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape) / 2) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = InNumpy.apply(self.kernel, self.dtype, self.off, self.before(x), *self.weights)
        return y


def report(name: str, dtype: type, off: float = 1.0, tolerance: float | None = 1e-3) -> Report:
    torch.manual_seed(0)
    kernel = KERNELS[name]
    layer, x = Layer(kernel, dtype, off), torch.randn(kernel.shapes[0])
    return check_module(layer, lambda y: y.sin().sum(), (x,), tolerance=tolerance)


@pytest.mark.parametrize("name", KERNELS)
def test_a_right_kernel_matches_in_every_row(name: str) -> None:
    found = report(name, np.float32)
    assert found.proven, str(found)
    assert found.evaluations <= 3 * report(name, np.float64).evaluations


@pytest.mark.parametrize("name", KERNELS)
def test_five_percent_off_is_a_mismatch_in_that_row_only(name: str) -> None:
    found = report(name, np.float32, off=1.05)
    last = f"weights.{len(KERNELS[name].shapes) - 2}"
    assert [row.name for row in found.mismatches] == [last]
    assert found.evaluations <= 3 * report(name, np.float64, off=1.05).evaluations


@pytest.mark.parametrize("name", KERNELS)
def test_what_stays_undecided_names_a_tolerance_that_decides(name: str) -> None:
    found = report(name, np.float32, tolerance=1e-6)
    undecided = [row for row in found if str(row.status) == "undecided"]
    assert undecided, "float32 cannot resolve 1e-6"
    named = [part.split(" ")[0] for row in undecided for part in row.reason.split("tolerance=")[1:]]
    assert len(named) == len(undecided)
    again = report(name, np.float32, tolerance=max(map(float, named)))
    assert all(str(again[row.name].status) == "match" for row in undecided)
