"""Derivatives from a ladder of steps, each with an error bar: what a disagreement is judged by.

For each function f_i the centered difference C(h) and both one-sided slopes are taken at every rung of a ladder of
steps. Extrapolating neighbouring rungs (Richardson) gives several estimates; the one whose error, seen from the spread
between rungs and the noise of f, is smallest is kept together with that error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from torch_gradcheck.differences.sampling import Flags, Floats, Indices, Sampler

RATIO = 8.0
"""From one rung to the next smaller one; a power of two, so that θ ± h is mostly exact."""

ORDERS = 4
"""How many columns the extrapolation tableau has: the plain differences and three extrapolations."""

SIGMAS = 6.0
"""How many standard deviations of noise an error bar allows."""


class Noise(NamedTuple):
    """What is known of f besides its values.

    Attributes:
        at_zero: f(0).
        sigma: one standard deviation of the noise of f near 0.
        epsilon: machine epsilon of the precision f is evaluated in.
    """

    at_zero: float
    sigma: float
    epsilon: float

    def of_slope(self, width: Floats, *values: Floats) -> Floats:
        """Error bar of a difference of two values divided by `width`; a value is rounded by ε/2 of itself at least."""
        floor = self.epsilon / 2 * np.max(np.abs(values), axis=0)
        return np.asarray(SIGMAS * np.sqrt(2) * np.maximum(self.sigma, floor) / np.abs(width))


class Window(NamedTuple):
    """Which centered difference to take: extrapolated from `order + 1` rungs, the smallest of them `step` wide.

    `Window(h, 0)` is the plain (f(h) − f(−h)) / 2h. Steps are relative to the unit of each argument.
    """

    step: float
    order: int


class Tableau(NamedTuple):
    """Extrapolated slopes A_j of every rung, (ORDERS, K, S), and their error bars, infinite where there are none."""

    values: Floats
    errors: Floats


@dataclass(frozen=True)
class Estimates:
    """Derivatives at 0 of K scalar functions; every array has shape (K,), except for `tableau`.

    Attributes:
        central: the two-sided derivative.
        error: its error bar; infinite where no two rungs agree.
        left, right: the one-sided slopes.
        jump_error: the error bar of `right − left`.
        tableau: every two-sided estimate.
    """

    central: Floats
    error: Floats
    left: Floats
    right: Floats
    jump_error: Floats
    tableau: Tableau

    @property
    def kinked(self) -> Flags:
        """Where the two one-sided slopes really differ: f is not differentiable at 0."""
        return np.asarray(np.abs(self.right - self.left) > self.jump_error)

    @property
    def half_width(self) -> Floats:
        """How far a gradient may lie from `central` and still be between slopes that f may have."""
        jump = np.abs(self.right - self.left) + self.jump_error
        return np.nan_to_num(jump / 2, nan=np.inf, posinf=np.inf)


def rungs(epsilon: float) -> Floats:
    """The relative steps, largest first, for a precision with this machine epsilon: 2⁻³ down to about ε^0.6."""
    count = int(np.log(epsilon**-0.6) / np.log(RATIO))
    return np.asarray(RATIO ** -np.arange(1, count + 1, dtype=np.float64))


def climb(sampler: Sampler, which: Indices, unit: Floats, noise: Noise) -> Estimates:
    """Derivatives of f_i for i in `which`, from every rung.

    Args:
        sampler: evaluates f_i(t).
        which: shape (K,), the functions to differentiate.
        unit: shape (K,), the scale of each one's argument; steps are `unit · rungs(ε)`.
        noise: of f.
    """
    with np.errstate(all="ignore"):  # f may be infinite at a large step; such a rung is never chosen
        slopes = _slopes(sampler, which, unit, rungs(noise.epsilon), noise)
        central = extrapolated(slopes.central, slopes.central_noise, order=2)
        right, right_error = _best(extrapolated(slopes.right, slopes.one_sided_noise, order=1))
        left, left_error = _best(extrapolated(slopes.left, slopes.one_sided_noise, order=1))
        value, error = _best(central)
    return Estimates(value, error, left, right, left_error + right_error, central)


def through_window(
    sampler: Sampler, which: Indices, unit: Floats, window: Window, noise: Noise
) -> tuple[Floats, Floats]:
    """The centered difference that `window` names, shape (K,), and the error bar that the noise of f gives it."""
    steps = window.step * RATIO ** np.arange(window.order, -1, -1, dtype=np.float64)
    with np.errstate(all="ignore"):
        slopes = _slopes(sampler, which, unit, steps, noise)
        value, roundoff = slopes.central, slopes.central_noise
        for j in range(window.order):
            value, roundoff = _next_column(value, roundoff, order=2, j=j)
    return value[:, -1], roundoff[:, -1]


def window_for(tableau: Tableau, epsilon: float, needed: float) -> tuple[Window, float]:
    """The cheapest window whose error bar is at most `needed` for the typical (median) function, and that error bar.

    Where none is that good, the one with the smallest error bar.
    """
    typical = np.median(tableau.errors, axis=1)
    steps = rungs(epsilon)
    for order in range(ORDERS):
        rung = int(np.argmin(typical[order]))
        if typical[order, rung] <= needed:
            return Window(float(steps[rung]), order), float(typical[order, rung])
    order, rung = divmod(int(np.argmin(typical)), len(steps))
    return Window(float(steps[rung]), order), float(typical[order, rung])


class _Slopes(NamedTuple):
    """Difference quotients at every rung and their noise, each (K, S)."""

    central: Floats
    right: Floats
    left: Floats
    central_noise: Floats
    one_sided_noise: Floats


def _slopes(sampler: Sampler, which: Indices, unit: Floats, relative_steps: Floats, noise: Noise) -> _Slopes:
    steps = unit[:, None] * relative_steps[None, :]
    both = np.concatenate([steps.ravel(), -steps.ravel()])
    samples = sampler(np.tile(np.repeat(which, steps.shape[1]), 2), both)
    t_plus, t_minus = samples.steps.reshape(2, *steps.shape)
    plus, minus = samples.values.reshape(2, *steps.shape)
    width = np.where(t_plus > t_minus, t_plus - t_minus, np.nan)  # a step too small for θ's precision moves nothing
    return _Slopes(
        (plus - minus) / width,
        (plus - noise.at_zero) / t_plus,
        (minus - noise.at_zero) / t_minus,
        noise.of_slope(width, plus, minus),
        noise.of_slope(width / 2, plus, minus),
    )


def extrapolated(slopes: Floats, roundoff: Floats, order: int) -> Tableau:
    """Ridders' tableau: column j removes the error term h^p, p = order·(j + 1), from two neighbouring rungs,

        A_{j+1}(h/r) = (r^p · A_j(h/r) − A_j(h)) / (r^p − 1)

    An entry's truncation error is its distance from what it was made of and from the entry a rung above; its roundoff
    is carried along. Source: Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Adv. Eng. Softw. 4 (1982).
    """
    count, steps = slopes.shape
    values = np.full((ORDERS, count, steps), np.nan)
    errors = np.full((ORDERS, count, steps), np.inf)
    value, noise, made_of = slopes, roundoff, np.zeros_like(slopes)
    for j in range(min(ORDERS, steps)):
        truncation = np.maximum(made_of, _from_rung_above(value))
        values[j, :, j:] = value
        errors[j, :, j:] = np.nan_to_num(truncation + noise, nan=np.inf, posinf=np.inf)
        if j + 1 < steps:
            finer = value[:, 1:]
            value, noise = _next_column(value, noise, order, j)
            made_of = np.abs(value - finer)
    return Tableau(values, errors)


def _next_column(value: Floats, noise: Floats, order: int, j: int) -> tuple[Floats, Floats]:
    factor = RATIO ** (order * (j + 1))
    return (
        (factor * value[:, 1:] - value[:, :-1]) / (factor - 1),
        (factor * noise[:, 1:] + noise[:, :-1]) / (factor - 1),
    )


def _from_rung_above(column: Floats) -> Floats:
    """Distance of each entry to the one a rung above; the topmost has nothing to agree with."""
    distance = np.full_like(column, np.inf)
    distance[:, 1:] = np.abs(column[:, 1:] - column[:, :-1])
    return distance


def _best(tableau: Tableau) -> tuple[Floats, Floats]:
    """For each function the estimate with the smallest error bar, and that error bar."""
    orders, count, steps = tableau.values.shape
    values = tableau.values.transpose(1, 0, 2).reshape(count, orders * steps)
    errors = tableau.errors.transpose(1, 0, 2).reshape(count, orders * steps)
    rows, best = np.arange(count), np.argmin(errors, axis=1)
    return values[rows, best], errors[rows, best]
