"""Derivatives by Richardson extrapolation over a ladder of steps, each with an error bar.

For each function f_i the centered difference C(h) and both one-sided slopes are taken at every rung of a ladder of
steps h. Richardson extrapolation of neighbouring rungs gives several estimates. Each has an error bar made of
truncation (the spread between rungs) and roundoff (the noise of f). The estimate with the smallest error bar is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.sampling import Sampler

ORDERS = 4
"""How many columns the extrapolation tableau has: the centered differences, of order h², and three extrapolations."""

CENTRAL_POWERS = (2, 4, 6)
"""The powers of h in the error of a centered difference of a smooth f."""

JUMP_POWERS = (1, 3, 5)
"""The powers of h in the difference between the two one-sided slopes of a smooth f."""


class Ladder(NamedTuple):
    """Relative steps 1, 1/ratio, 1/ratio², ..., down to about `smallest`, in multiples of the argument's unit.

    The ratio is a power of two, so that θ ± h is mostly exact. A step too small to change θ gives NaN at that rung.

    Attributes:
        ratio: each rung against the next smaller one.
        smallest: lower limit of the steps; `Ladder(8, 1e-2)` has the steps 1, 0.125 and 0.015625.
        smooth: whether slopes that settle are those of a smooth f. Among many corners they may settle by chance, each
            corner hidden in the noise of the next smaller step.
    """

    ratio: float
    smallest: float
    smooth: bool = True

    @property
    def rungs(self) -> Floats:
        """The steps, largest first."""
        count = int(np.log(1 / self.smallest) / np.log(self.ratio))
        return np.asarray(self.ratio ** -np.arange(0, count + 1, dtype=np.float64))


COARSE = Ladder(ratio=8.0, smallest=1e-11)
"""Thirteen steps from 1 to 1.5e-11. Small ones resolve kinks close to θ, large ones gradients of 1e-10 and less."""

FINE = Ladder(ratio=2.0, smallest=1e-4)
"""Fourteen steps from 1 to 1.2e-4. Dense where a small gradient needs large steps, so that it extrapolates better."""


class Stencil(NamedTuple):
    """The points of one centered difference: order + 1 steps, extrapolated `order` times.

    `Stencil(h, 0)` is (f(h) − f(−h)) / 2h. `Stencil(h, 1)` combines the steps h and 8·h, and so on.

    Attributes:
        step: the smallest step, relative to the unit of each argument.
        order: how many extrapolations; the error of the result is of order h^(2 + 2·order).
    """

    step: float
    order: int


class Tableau(NamedTuple):
    """The extrapolated slopes A_j of K functions at S rungs; all arrays have shape (ORDERS, K, S).

    Column j exists from rung j on. Elsewhere `values` is NaN, and the other arrays are infinite.

    Attributes:
        values: the slopes.
        error_bars: their error bars, wide enough to call a gradient wrong by.
        expected: the error bars if f is smooth; good enough to choose a step by.
        local: distance of a slope to that of the next larger step, plus its roundoff.
    """

    values: Floats
    error_bars: Floats
    expected: Floats
    local: Floats


@dataclass(frozen=True)
class Estimates:
    """Derivatives at 0 of K scalar functions; every array has shape (K,), except for `tableau`.

    Attributes:
        central: the two-sided derivative.
        error_bar: of `central`; infinite where no two rungs agree.
        step: the smallest step that `central` was made of, relative to the unit.
        jump: right slope minus left slope; not 0 at a kink. For |t| at 0 it is 2.
        jump_error_bar: of `jump`.
        tableau: every two-sided estimate.
    """

    central: Floats
    error_bar: Floats
    step: Floats
    jump: Floats
    jump_error_bar: Floats
    tableau: Tableau

    @property
    def left(self) -> Floats:
        """The one-sided slope for t < 0: central − jump/2."""
        return self.central - self.jump / 2

    @property
    def right(self) -> Floats:
        """The one-sided slope for t > 0: central + jump/2."""
        return self.central + self.jump / 2

    @property
    def kinked(self) -> Flags:
        """Functions with a kink at 0: the two one-sided slopes differ by more than the error bar."""
        return np.asarray(np.abs(self.jump) > self.jump_error_bar)

    def replaced(self, positions: Indices, other: Estimates, others: Indices) -> Estimates:
        """A copy whose estimates at `positions` are those of `other` at `others`; the tableau stays."""

        def mixed(mine: Floats, theirs: Floats) -> Floats:
            result = mine.copy()
            result[positions] = theirs[others]
            return result

        return Estimates(
            mixed(self.central, other.central),
            mixed(self.error_bar, other.error_bar),
            mixed(self.step, other.step),
            mixed(self.jump, other.jump),
            mixed(self.jump_error_bar, other.jump_error_bar),
            self.tableau,
        )

    @property
    def half_width(self) -> Floats:
        """Half the width of the range of slopes that f may have; the range is centered on `central`."""
        return np.nan_to_num((np.abs(self.jump) + self.jump_error_bar) / 2, nan=np.inf, posinf=np.inf)


def extrapolated_derivatives(
    sampler: Sampler, which: Indices, unit: Floats, noise: Noise, ladder: Ladder = COARSE
) -> Estimates:
    """Derivatives of f_i for i in `which`, from every rung of a ladder.

    Costs two samples a function and rung.

    Args:
        sampler: evaluates f_i(t).
        which: shape (K,), the functions to differentiate.
        unit: shape (K,), the scale of each one's argument; steps are `unit · ladder.rungs`.
        noise: of f.
        ladder: the relative steps.
    """
    with np.errstate(all="ignore"):  # f may be infinite at a large step; such a rung is never chosen
        slopes = _slopes(sampler, which, unit, ladder.rungs, noise)
        central = extrapolated(slopes.central, slopes.central_roundoff, CENTRAL_POWERS, ladder.ratio, ladder.smooth)
        jumps = extrapolated(slopes.jump, slopes.jump_roundoff, JUMP_POWERS, ladder.ratio, ladder.smooth)
        jump, jump_error_bar, _ = _best(jumps)
        value, error_bar, rung = _best(central)
    error_bar = error_bar * (1 + ladder.ratio**-2.0)  # the smaller rungs that it is compared with are off by so much
    return Estimates(value, error_bar, ladder.rungs[rung], jump, jump_error_bar, central)


class Differences(NamedTuple):
    """Centered differences of K functions by one stencil; arrays of shape (K,).

    Attributes:
        central: the differences, extrapolated as the stencil says.
        roundoff: their error bars, of roundoff alone: truncation shows only where several steps are compared.
        middle: the mean of f at the two innermost points, (f(h) + f(−h)) / 2. Beside f(0) it tells of a kink.
        step: the h really taken there.
    """

    central: Floats
    roundoff: Floats
    middle: Floats
    step: Floats

    def at(self, positions: Indices) -> Differences:
        """Those of some of the functions."""
        return Differences(*(values[positions] for values in self))


NO_DIFFERENCES = Differences(*np.empty((4, 0)))


def through_stencil(sampler: Sampler, which: Indices, unit: Floats, stencil: Stencil, noise: Noise) -> Differences:
    """The centered differences of one stencil.

    Example: f(t) = eᵗ with `Stencil(0.1, 0)` gives sinh(0.1)/0.1 = 1.00167, with `Stencil(0.01, 1)` 1 − 5e-9.
    """
    steps = stencil.step * COARSE.ratio ** np.arange(stencil.order, -1, -1, dtype=np.float64)
    with np.errstate(all="ignore"):
        slopes = _slopes(sampler, which, unit, steps, noise)
        value, roundoff = slopes.central, slopes.central_roundoff
        for j in range(stencil.order):
            value, roundoff = _next_column(value, roundoff, COARSE.ratio ** CENTRAL_POWERS[j])
    return Differences(value[:, -1], roundoff[:, -1], slopes.middle[:, -1], slopes.step[:, -1])


def stencil_for(tableau: Tableau, needed: float) -> tuple[Stencil, float]:
    """The stencil with the fewest points whose expected error bar is at most `needed`, and that error bar.

    The error bar is the median over the functions. Where no stencil is that good, it is the one with the smallest.
    """
    typical = np.median(tableau.expected, axis=1)
    steps = COARSE.rungs
    for order in range(ORDERS):
        rung = int(np.argmin(typical[order]))
        if typical[order, rung] <= needed:
            return Stencil(float(steps[rung]), order), float(typical[order, rung])
    order, rung = divmod(int(np.argmin(typical)), len(steps))
    return Stencil(float(steps[rung]), order), float(typical[order, rung])


class _Slopes(NamedTuple):
    """Centered differences and jumps of K functions at S rungs with their roundoff; all arrays have shape (K, S)."""

    central: Floats
    jump: Floats
    central_roundoff: Floats
    jump_roundoff: Floats
    middle: Floats
    step: Floats


def _slopes(sampler: Sampler, which: Indices, unit: Floats, relative_steps: Floats, noise: Noise) -> _Slopes:
    steps = unit[:, None] * relative_steps[None, :]
    both = np.concatenate([steps.ravel(), -steps.ravel()])
    each = np.repeat(which, steps.shape[1])
    samples = sampler(np.concatenate([each, each]), both)  # np.tile swallows a Ctrl-C that lands in its generator
    t_plus, t_minus = samples.steps.reshape(2, *steps.shape)
    plus, minus = samples.values.reshape(2, *steps.shape)
    width = np.where(t_plus > t_minus, t_plus - t_minus, np.nan)  # a step too small for θ's precision does not move θ
    return _Slopes(
        (plus - minus) / width,
        (plus - noise.at_zero) / t_plus - (minus - noise.at_zero) / t_minus,
        noise.of_slope(width, plus, minus, steps=relative_steps),
        noise.of_slope(width / 4, plus, minus, steps=relative_steps),
        (plus + minus) / 2,
        width / 2,
    )


def extrapolated(
    slopes: Floats, roundoff: Floats, powers: tuple[int, ...], ratio: float, smooth: bool = True
) -> Tableau:
    """Ridders' extrapolation tableau.

    Column j + 1 removes the error term h^p, p = powers[j], from two neighbouring rungs h and h/r:

        A_{j+1}(h/r) = (r^p · A_j(h/r) − A_j(h)) / (r^p − 1)

    Source: Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Adv. Eng. Softw. 4 (1982). The error bar of an
    estimate is its roundoff plus its truncation. Roundoff goes through the same formula. Truncation is:

    - where f may be smooth and the slopes settle as then: the distance to the estimate of the rung above, divided by r;
    - elsewhere: the larger of that distance, undivided, and the distance to the finer estimate it was made of. The
      roundoff two rungs further down is added, since a kink of that size could hide between the rungs;
    - in both cases at least the distance to the estimates of all smaller rungs in the column, beyond their roundoff. A
      derivative is a limit: where f is saturated, large steps agree with each other, and only smaller ones object.

    Args:
        slopes: shape (K, S), differences at every rung, largest step first.
        roundoff: shape (K, S), their error bars from the noise of f.
        powers: the powers of h in the error of a slope.
        ratio: r, of the ladder.
        smooth: whether f may be smooth.
    """
    count, steps = slopes.shape
    values = np.full((ORDERS, count, steps), np.nan)
    error_bars, expected, local = np.full((3, ORDERS, count, steps), np.inf)
    settled = _settling(slopes, roundoff, 0.75 * ratio ** powers[0]) & smooth
    hidden = np.concatenate([roundoff[:, 2:], np.full((count, min(2, steps)), np.inf)], axis=1)[:, :steps]
    value, made_of = slopes, np.zeros_like(slopes)
    for j in range(min(ORDERS, steps)):
        above = _from_rung_above(value)
        below = _beyond_roundoff_of_smaller_rungs(value, roundoff)
        # A smooth f decays by two orders or more from rung to rung; one order is asked for.
        if_smooth = np.maximum(above / ratio + roundoff, below)
        rough = np.maximum(np.maximum(made_of, above) + roundoff + hidden[:, j:], below)
        values[j, :, j:] = value
        expected[j, :, j:] = _or_infinite(if_smooth)
        local[j, :, j:] = _or_infinite(above + roundoff)
        error_bars[j, :, j:] = _or_infinite(np.where(settled[:, j:], if_smooth, rough))
        if j + 1 < min(ORDERS, steps):
            finer = value[:, 1:]
            value, roundoff = _next_column(value, roundoff, ratio ** powers[j])
            made_of = np.abs(value - finer)
    return Tableau(values, error_bars, expected, local)


def _settling(slopes: Floats, roundoff: Floats, decay: float) -> Flags:
    """Rungs where the slopes settle like those of a smooth f, shape (K, S).

    The distance between neighbouring slopes falls by the factor `decay` from rung to rung, or is within roundoff. This
    must hold twice in a row; once is enough at the third rung. At the last rung, below which nothing confirms it, the
    distance before may have fallen against that of two rungs further up: where f curves between the last rungs, some
    step has the slope of f by chance, and the distance to it is small before its time.
    """
    distance = _from_rung_above(slopes)
    calm = np.zeros(slopes.shape, dtype=bool)
    allowed = np.maximum(distance[:, :-1] / decay, roundoff[:, 1:] + roundoff[:, :-1])
    calm[:, 1:] = (distance[:, 1:] <= allowed) & np.isfinite(distance[:, :-1])
    settled = np.zeros(slopes.shape, dtype=bool)
    settled[:, 1:] = calm[:, 1:] & calm[:, :-1]
    settled[:, 2:3] = calm[:, 2:3]
    if slopes.shape[1] > 4:
        settled[:, -1] |= calm[:, -1] & (distance[:, -2] * decay <= np.fmax(distance[:, -3], distance[:, -4]))
    return settled


def _or_infinite(error_bars: Floats) -> Floats:
    return np.nan_to_num(error_bars, nan=np.inf, posinf=np.inf)


def _next_column(value: Floats, roundoff: Floats, factor: float) -> tuple[Floats, Floats]:
    return (
        (factor * value[:, 1:] - value[:, :-1]) / (factor - 1),
        (factor * roundoff[:, 1:] + roundoff[:, :-1]) / (factor - 1),
    )


def _from_rung_above(column: Floats) -> Floats:
    """Distance of each slope to that of the next larger step; infinite at the largest step."""
    distance = np.full_like(column, np.inf)
    distance[:, 1:] = np.abs(column[:, 1:] - column[:, :-1])
    return distance


def _beyond_roundoff_of_smaller_rungs(column: Floats, roundoff: Floats) -> Floats:
    """Largest distance of each estimate to those of smaller rungs, less the roundoff of these; 0 where within it."""
    beyond = np.zeros_like(column)
    for rung in range(1, column.shape[1]):
        distance = np.abs(column[:, :rung] - column[:, rung : rung + 1]) - roundoff[:, rung : rung + 1]
        beyond[:, :rung] = np.fmax(beyond[:, :rung], distance)
    return beyond


def _best(tableau: Tableau) -> tuple[Floats, Floats, Indices]:
    """For each function the estimate with the smallest error bar, that error bar, and the number of its rung."""
    orders, count, steps = tableau.values.shape
    values = tableau.values.transpose(1, 0, 2).reshape(count, orders * steps)
    error_bars = tableau.error_bars.transpose(1, 0, 2).reshape(count, orders * steps)
    rows, best = np.arange(count), np.argmin(error_bars, axis=1)
    return values[rows, best], error_bars[rows, best], np.asarray(best % steps, dtype=np.int64)
