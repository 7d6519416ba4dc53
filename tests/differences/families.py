"""Scalar functions with known derivatives, sampled as the numerical core asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import POINTS, Noise, measured_noise
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.verdicts.entry_check import EntryCheck

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Known:
    """A function of one number and its derivative, both accurate to a few roundings.

    Attributes:
        arguments: the exponents of 10 between which |x| may lie.
        negative: whether it is defined for x < 0.
    """

    id: str
    f: Callable[[Floats], Floats]
    slope: Callable[[Floats], Floats]
    arguments: tuple[float, float] = (-6, 6)
    negative: bool = True


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


KNOWN = [
    Known("sin", np.sin, np.cos),
    Known("exp", np.exp, np.exp, (-6, 2)),
    Known("log", np.log, lambda x: 1 / x, negative=False),
    Known("tanh", np.tanh, lambda x: 1 / np.cosh(x) ** 2, (-6, 1)),
    Known("sigmoid", sigmoid, lambda x: sigmoid(x) * sigmoid(-x), (-6, 1)),
    Known("reciprocal", lambda x: 1 / x, lambda x: -1 / x**2),
    Known("sqrt", np.sqrt, lambda x: 0.5 / np.sqrt(x), negative=False),
    Known("identity", lambda x: x, np.ones_like),
    Known("square", lambda x: x**2, lambda x: 2 * x),
    Known("cube", lambda x: x**3, lambda x: 3 * x**2),
    Known("tenth power", lambda x: x**10, lambda x: 10 * x**9, (-3, 3)),
    Known("gauss", lambda x: np.exp(-(x**2)), lambda x: -2 * x * np.exp(-(x**2)), (-6, 0.5)),
    Known("x sin x", lambda x: x * np.sin(x), lambda x: np.sin(x) + x * np.cos(x), (-6, 4)),
    Known("constant", np.ones_like, np.zeros_like),
]


class Family:
    """J(x) = Σ g_i(x_i) as the scalar functions f_i(t) = J(x + t·e_i) that the core differentiates.

    Args:
        functions: g_i, one for each entry of `x`.
        x: the point.
        precision: the dtype J is computed in; J of float16 or float32 is rounded to it.
    """

    def __init__(
        self, functions: Sequence[Callable[[Floats], Floats]], x: Floats | Sequence[float], precision: type = np.float64
    ) -> None:
        self.functions, self.x, self.precision = list(functions), np.array(x, dtype=precision), precision
        self.evaluations = 0
        self.epsilon = float(np.finfo(precision).eps)

    def J(self, x: Floats) -> float:
        """J at x, one sum in a fixed order, as a model computes it."""
        return self.total(self._parts(x))

    def total(self, parts: Floats) -> float:
        with np.errstate(all="ignore"):
            return float(np.sum(parts, dtype=self.precision))

    def sampler(self, which: Indices, steps: Floats) -> Samples:
        return self._sample(self.x, which, steps)

    def nearby(self, k: int, distance: float) -> Callable[[Indices, Floats], Samples]:
        signs = np.random.default_rng(k).choice([-1.0, 1.0], len(self.x))
        moved = (self.x + distance * signs * self.scale).astype(self.precision)
        return lambda which, steps: self._sample(moved, which, steps)

    @property
    def unit(self) -> Floats:
        return np.maximum(1.0, np.abs(self.x)).astype(np.float64)

    @property
    def scale(self) -> Floats:
        """As the check has it: the larger of |θ_i| and the root mean square, 1 where all is 0."""
        size = np.abs(self.x).astype(np.float64)
        typical = float(np.sqrt(np.mean(size**2))) if len(size) else 0.0
        return np.maximum(size, typical) if typical else np.ones_like(size)

    @property
    def noise(self) -> Noise:
        """Measured as the check does: J at equally spaced points on one side of x, farther off where it is constant."""
        spacing = self.epsilon ** (2 / 3)
        values = self._along(spacing)
        sigma = measured_noise(values)
        while not np.ptp(values) and spacing < 1:
            spacing *= 8
            values = self._along(spacing)
            changes = np.abs(np.diff(values))
            sigma = float(np.min(changes[changes > 0], initial=np.inf)) if changes.any() else 0.0
        return Noise(self.J(self.x), sigma, self.epsilon)

    def check(self, analytic: Floats, *, tolerance: float = 1e-5, eps: float | None = None) -> EntryCheck:
        at_zero = self.J(self.x)
        return EntryCheck(
            sampler=self.sampler,
            at_zero=lambda: at_zero,
            eager_sampler=self.sampler,
            nearby=self.nearby,
            nearby_analytic=None,
            analytic=np.asarray(analytic, dtype=np.float64),
            analytic_epsilon=self.epsilon,
            unit=self.unit,
            scale=self.scale,
            noise=self.noise,
            tolerance=tolerance,
            eps=eps,
        )

    def _along(self, spacing: float) -> Floats:
        signs = np.random.default_rng(99).choice([-1.0, 1.0], len(self.x))
        points = [self.x + spacing * (k + 1) * signs * self.scale for k in range(POINTS)]
        return np.array([self.J(point.astype(self.precision)) for point in points])

    def _sample(self, x: Floats, which: Indices, steps: Floats) -> Samples:
        self.evaluations += len(which)
        taken, values, parts = np.empty(len(which)), np.empty(len(which)), self._parts(x)
        with np.errstate(all="ignore"):
            for k, (i, step) in enumerate(zip(which, steps, strict=True)):
                moved = np.array([float(x[i]) + step], dtype=self.precision)
                taken[k] = float(moved[0]) - float(x[i])
                before, parts[i] = parts[i], self.functions[i](moved)[0]
                values[k], parts[i] = self.total(parts), before
        return Samples(taken, values)

    def _parts(self, x: Floats) -> Floats:
        with np.errstate(all="ignore"):
            return np.array([g(x[i : i + 1])[0] for i, g in enumerate(self.functions)], dtype=self.precision)
