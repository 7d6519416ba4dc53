"""Functions with their backward as formulas of arrays, which numpy, JAX and torch can all evaluate, and mistakes in it.

Each is written once, over a namespace `xp` that is `numpy`, `jax.numpy` or `torch`; so every framework gets the same
forward, the same backward, and the same mistake in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
Arrays = tuple[Array, ...]


@dataclass(frozen=True)
class Case:
    """A function, its backward, and the arguments that it is checked at, in float64.

    Attributes:
        name: what it is.
        forward: (xp, *arguments) → output.
        backward: (xp, upstream gradient, *arguments) → a gradient for each argument.
        arguments: name → numbers.
        difficulty: why differences have a hard time here; "" where they have none.
    """

    name: str
    forward: Callable[..., Array]
    backward: Callable[..., Arrays]
    arguments: dict[str, np.ndarray]
    difficulty: str = ""

    @property
    def values(self) -> list[np.ndarray]:
        """The arguments in order."""
        return list(self.arguments.values())


@dataclass(frozen=True)
class Mistake:
    """What is wrong with the gradient of one argument.

    Attributes:
        kind: of mistake, in words.
        position: of the argument.
        factors: what each entry of its gradient is multiplied by.
    """

    kind: str
    position: int
    factors: np.ndarray

    def planted(self, xp: Any, gradients: Arrays) -> Arrays:
        """The gradients, one of them wrong."""
        changed = list(gradients)
        changed[self.position] = gradients[self.position] * xp.asarray(
            self.factors, dtype=gradients[self.position].dtype
        )
        return tuple(changed)


KINDS = {
    "factor 2": (2.0, False),
    "factor 1.01": (1.01, False),
    "factor 1.0001": (1.0001, False),
    "sign flipped": (-1.0, False),
    "zero": (0.0, False),
    "one entry doubled": (2.0, True),
    "one entry 1 % too large": (1.01, True),
}
"""Kind of mistake to its factor, and whether it is in one entry only: the one with the largest gradient."""


def mistakes(case: Case) -> Iterator[Mistake]:
    """Every kind of mistake in the gradient of every argument."""
    upstream = np.random.default_rng(1).uniform(0.5, 1.5, np.shape(case.forward(np, *case.values)))
    for position, gradient in enumerate(case.backward(np, upstream, *case.values)):
        for kind, (factor, in_one_entry) in KINDS.items():
            factors = np.full(gradient.shape, 1.0 if in_one_entry else factor)
            if in_one_entry:
                factors.flat[np.abs(gradient).argmax()] = factor
            if gradient.size > 1 or not in_one_entry:
                yield Mistake(kind, position, factors)


# The functions ----------------------------------------------------------------------------------------------------


def mlp(xp: Any, x: Array, W: Array, b: Array, V: Array, c: Array) -> Array:
    """Two layers with a tanh between them."""
    return xp.tanh(x @ W + b) @ V + c


def mlp_backward(xp: Any, g: Array, x: Array, W: Array, b: Array, V: Array, c: Array) -> Arrays:
    """As the lecture derives it."""
    A = xp.tanh(x @ W + b)
    dZ = (g @ V.T) * (1 - A * A)
    return dZ @ W.T, x.T @ dZ, dZ.sum(axis=0), A.T @ g, g.sum(axis=0)


def cross_entropy(xp: Any, logits: Array, labels: np.ndarray) -> Array:
    """The mean over the rows of log Σ exp − the logit of the label."""
    right = (logits * xp.asarray(labels)).sum(axis=1)
    return (xp.log(xp.exp(logits).sum(axis=1)) - right).mean()


def cross_entropy_backward(xp: Any, g: Array, logits: Array, labels: np.ndarray) -> Arrays:
    """(softmax − label) / rows."""
    p = xp.exp(logits)
    p = p / p.sum(axis=1)[:, None]
    return (g * xp.where(xp.asarray(labels), p - 1, p) / len(labels),)


def layer_norm(xp: Any, x: Array, w: Array, b: Array) -> Array:
    """Each row less its mean, divided by its standard deviation."""
    d = x - x.mean(axis=1)[:, None]
    return d * ((d * d).mean(axis=1)[:, None] + 1e-5) ** -0.5 * w + b


def layer_norm_backward(xp: Any, g: Array, x: Array, w: Array, b: Array) -> Arrays:
    """The mean and the projection on the normalised row are taken out."""
    d = x - x.mean(axis=1)[:, None]
    r = ((d * d).mean(axis=1)[:, None] + 1e-5) ** -0.5
    n, h = d * r, g * w
    dx = r * (h - h.mean(axis=1)[:, None] - n * (h * n).mean(axis=1)[:, None])
    return dx, (g * n).sum(axis=0), g.sum(axis=0)


def convolution(xp: Any, x: Array, w: Array) -> Array:
    """(n, in, length) and (out, in, taps) → (n, out, length − taps + 1)."""
    return xp.einsum("nclk,ock->nol", _windows(xp, x, w.shape[2]), w)


def convolution_backward(xp: Any, g: Array, x: Array, w: Array) -> Arrays:
    """The gradient of x is the convolution of the padded g with the flipped taps."""
    taps = w.shape[2]
    nothing = 0 * g[:, :, :1]
    padded = xp.concatenate([nothing] * (taps - 1) + [g] + [nothing] * (taps - 1), axis=2)
    flipped = xp.flip(w, (2,))
    dx = xp.einsum("nolk,ock->ncl", _windows(xp, padded, taps), flipped)
    return dx, xp.einsum("nclk,nol->ock", _windows(xp, x, taps), g)


def _windows(xp: Any, x: Array, taps: int) -> Array:
    length = x.shape[2] - taps + 1
    return xp.stack([x[:, :, i : i + length] for i in range(taps)], axis=3)


def attention(xp: Any, q: Array, k: Array, v: Array) -> Array:
    """softmax(q kᵀ) v."""
    p = xp.exp(q @ k.T)
    return (p / p.sum(axis=1)[:, None]) @ v


def attention_backward(xp: Any, g: Array, q: Array, k: Array, v: Array) -> Arrays:
    """The softmax takes its own mean out of the gradient of the scores."""
    p = xp.exp(q @ k.T)
    p = p / p.sum(axis=1)[:, None]
    dp = g @ v.T
    ds = p * (dp - (dp * p).sum(axis=1)[:, None])
    return ds @ k, ds.T @ q, p.T @ g


def relu(xp: Any, x: Array) -> Array:
    """max(0, x); of complex numbers, which OpenMDAO's complex steps are, the real part decides."""
    return xp.where(xp.real(x) > 0, x, 0 * x)


def relu_backward(xp: Any, g: Array, x: Array) -> Arrays:
    """0 at 0, as in every framework."""
    return (xp.where(x > 0, g, 0 * g),)


def _draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _with_zeros() -> np.ndarray:
    x = _draw(4, 5)
    x[0] = 0.0  # padding
    return x


LABELS = np.eye(4, dtype=bool)[[0, 2, 1, 3, 2]]

CASES = (
    Case(
        "MLP",
        mlp,
        mlp_backward,
        {name: _draw(*shape, seed=i) for i, (name, shape) in enumerate(
            {"x": (6, 4), "W": (4, 5), "b": (5,), "V": (5, 3), "c": (3,)}.items()
        )},
    ),
    Case(
        "softmax cross-entropy",
        lambda xp, logits: cross_entropy(xp, logits, LABELS),
        lambda xp, g, logits: cross_entropy_backward(xp, g, logits, LABELS),
        {"logits": _draw(5, 4)},
    ),
    Case(
        "layer norm",
        layer_norm,
        layer_norm_backward,
        {"x": _draw(4, 6), "w": _draw(6, seed=1), "b": _draw(6, seed=2)},
    ),
    Case("convolution", convolution, convolution_backward, {"x": _draw(2, 3, 9), "w": _draw(4, 3, 3, seed=1)}),
    Case(
        "attention",
        attention,
        attention_backward,
        {name: _draw(5, 4, seed=i) for i, name in enumerate("qkv")},
    ),
    Case("ReLU with zeros among its inputs", relu, relu_backward, {"x": _with_zeros()}, "a kink at the inputs"),
    Case(
        "sin(512π x), as in positional encodings",
        lambda xp, x: xp.sin(512 * np.pi * x),
        lambda xp, g, x: (g * 512 * np.pi * xp.cos(512 * np.pi * x),),
        {"x": _draw(4, 3)},
        "a step of 1e-4 or 1e-6 is too wide",
    ),
    Case(
        "a sum beside a constant of 1e8",
        lambda xp, x: 1e8 + (x**3).sum(),
        lambda xp, g, x: (g * 3 * x**2,),
        {"x": _draw(4, 3)},
        "rounding of 1e-8 in every value",
    ),
    Case(
        "MLP, output times 1e-7",
        lambda xp, *given: 1e-7 * mlp(xp, *given),
        lambda xp, g, *given: mlp_backward(xp, 1e-7 * g, *given),
        {name: _draw(*shape, seed=i) for i, (name, shape) in enumerate(
            {"x": (3, 2), "W": (2, 3), "b": (3,), "V": (3, 2), "c": (2,)}.items()
        )},
        "gradients below absolute tolerances",
    ),
)  # fmt: skip
