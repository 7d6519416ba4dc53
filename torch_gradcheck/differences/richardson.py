"""Derivatives from a ladder of steps, each with an error bar: what a disagreement is judged by.

For each function f_i the centered difference C(h) and both one-sided slopes are taken at every rung of a ladder of
steps. Extrapolating neighbouring rungs (Richardson) gives several estimates; the one whose error, seen from the spread
between rungs and the noise of f, is smallest is kept together with that error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.sampling import Sampler

ORDERS = 4
"""How many columns the extrapolation tableau has: the plain differences and three extrapolations."""

CENTRAL_POWERS = (2, 4, 6)
"""The powers of h in the error of a centered difference of a smooth f."""

JUMP_POWERS = (1, 3, 5)
"""The powers of h in the difference between the two one-sided slopes of a smooth f."""


class Ladder(NamedTuple):
    """Steps to try, relative to the unit of the argument: 1, 1/ratio, 1/ratio², ..., down to about `smallest`.

    The ratio is a power of two, so that θ ± h is mostly exact. A step that θ cannot hold tells nothing, no more.
    """

    ratio: float
    smallest: float

    @property
    def rungs(self) -> Floats:
        """The steps, largest first."""
        count = int(np.log(1 / self.smallest) / np.log(self.ratio))
        return np.asarray(self.ratio ** -np.arange(0, count + 1, dtype=np.float64))


COARSE = Ladder(ratio=8.0, smallest=1e-11)
"""Reaches everything from kinks next to θ to gradients far below the noise of small steps."""

FINE = Ladder(ratio=2.0, smallest=1e-4)
"""Extrapolates better at the large steps that small gradients need."""


class Stencil(NamedTuple):
    """Which centered difference to take: extrapolated from `order + 1` coarse rungs, the smallest of them `step` wide.

    `Window(h, 0)` is the plain (f(h) − f(−h)) / 2h. Steps are relative to the unit of each argument.
    """

    step: float
    order: int


class Tableau(NamedTuple):
    """Extrapolated slopes A_j of every rung, all (ORDERS, K, S), infinite errors where there is none.

    Attributes:
        values: the slopes.
        errors: their error bars, wide enough to accuse by.
        expected: what the error should be if f is smooth; good enough to choose a step by.
        local: how well a slope agrees with that of the rung above, and the roundoff of both.
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
        error: its error bar; infinite where no two rungs agree.
        step: the relative step of the smallest rung it was made of.
        jump: right slope minus left slope; not 0 at a kink.
        jump_error: its error bar.
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
        """The slope on the left of 0."""
        return self.central - self.jump / 2

    @property
    def right(self) -> Floats:
        """The slope on the right of 0."""
        return self.central + self.jump / 2

    @property
    def kinked(self) -> Flags:
        """Where the two one-sided slopes really differ: f is not differentiable at 0."""
        return np.asarray(np.abs(self.jump) > self.jump_error_bar)

    def replaced(self, positions: Indices, other: Estimates, others: Indices) -> Estimates:
        """These estimates, those at `positions` taken from the `others` of another ladder; the tableau stays."""

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
        """How far a gradient may lie from `central` and still be between slopes that f may have."""
        return np.nan_to_num((np.abs(self.jump) + self.jump_error_bar) / 2, nan=np.inf, posinf=np.inf)


def extrapolated_derivatives(
    sampler: Sampler, which: Indices, unit: Floats, noise: Noise, ladder: Ladder = COARSE
) -> Estimates:
    """Derivatives of f_i for i in `which`, from every rung.

    Args:
        sampler: evaluates f_i(t).
        which: shape (K,), the functions to differentiate.
        unit: shape (K,), the scale of each one's argument; steps are `unit · ladder.rungs`.
        noise: of f.
        ladder: which steps.
    """
    with np.errstate(all="ignore"):  # f may be infinite at a large step; such a rung is never chosen
        slopes = _slopes(sampler, which, unit, ladder.rungs, noise)
        central = extrapolated(slopes.central, slopes.central_noise, CENTRAL_POWERS, ladder.ratio)
        jump, jump_error_bar, _ = _best(extrapolated(slopes.jump, slopes.jump_noise, JUMP_POWERS, ladder.ratio))
        value, error_bar, rung = _best(central)
    return Estimates(value, error_bar, ladder.rungs[rung], jump, jump_error_bar, central)


def through_stencil(
    sampler: Sampler, which: Indices, unit: Floats, stencil: Stencil, noise: Noise
) -> tuple[Floats, Floats]:
    """The centered difference that `window` names, shape (K,), and the error bar that the noise of f gives it."""
    steps = stencil.step * COARSE.ratio ** np.arange(stencil.order, -1, -1, dtype=np.float64)
    with np.errstate(all="ignore"):
        slopes = _slopes(sampler, which, unit, steps, noise)
        value, roundoff = slopes.central, slopes.central_noise
        for j in range(stencil.order):
            value, roundoff = _next_column(value, roundoff, COARSE.ratio ** CENTRAL_POWERS[j])
    return value[:, -1], roundoff[:, -1]


def stencil_for(tableau: Tableau, needed: float) -> tuple[Stencil, float]:
    """The cheapest window whose error is at most `needed` for the typical (median) function, and that error.

    Where none is that good, the one with the smallest error.
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
    """Difference quotients at every rung and their noise, each (K, S)."""

    central: Floats
    jump: Floats
    central_noise: Floats
    jump_noise: Floats


def _slopes(sampler: Sampler, which: Indices, unit: Floats, relative_steps: Floats, noise: Noise) -> _Slopes:
    steps = unit[:, None] * relative_steps[None, :]
    both = np.concatenate([steps.ravel(), -steps.ravel()])
    samples = sampler(np.tile(np.repeat(which, steps.shape[1]), 2), both)
    t_plus, t_minus = samples.steps.reshape(2, *steps.shape)
    plus, minus = samples.values.reshape(2, *steps.shape)
    width = np.where(t_plus > t_minus, t_plus - t_minus, np.nan)  # a step too small for θ's precision moves nothing
    return _Slopes(
        (plus - minus) / width,
        (plus - noise.at_zero) / t_plus - (minus - noise.at_zero) / t_minus,
        noise.of_slope(width, plus, minus, steps=relative_steps),
        noise.of_slope(width / 4, plus, minus, steps=relative_steps),
    )


def extrapolated(slopes: Floats, roundoff: Floats, powers: tuple[int, ...], ratio: float) -> Tableau:
    """Ridders' extrapolation tableau.

    Column j + 1 removes the error term h^p, p = powers[j], from two neighbouring rungs,

        A_{j+1}(h/r) = (r^p · A_j(h/r) − A_j(h)) / (r^p − 1)

    Source: Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Adv. Eng. Softw. 4 (1982). Roundoff is carried
    along. Truncation is an entry's distance from what it was made of and from the entry a rung above, or a `ratio`th
    of the latter where the slopes are seen to settle as those of a smooth f do. Where they are not, a kink could hide
    between the rungs, as far as the roundoff two rungs further down lets it: that much is added. And the derivative
    being a limit, an estimate must agree with those of all smaller rungs in its column, within their roundoff: what a
    saturated f says of itself far away from 0 agrees with itself too.
    """
    count, steps = slopes.shape
    values = np.full((ORDERS, count, steps), np.nan)
    error_bars, expected, local = np.full((3, ORDERS, count, steps), np.inf)
    settled = _settling(slopes, roundoff, 0.75 * ratio ** powers[0])
    hidden = np.concatenate([roundoff[:, 2:], np.full((count, min(2, steps)), np.inf)], axis=1)[:, :steps]
    value, noise, made_of = slopes, roundoff, np.zeros_like(slopes)
    for j in range(min(ORDERS, steps)):
        above = _from_rung_above(value)
        below = _beyond_noise_of_smaller_rungs(value, noise)
        # One order of decay from rung to rung is asked of a smooth f, which has two or more.
        smooth = np.maximum(above / ratio + noise, below)
        rough = np.maximum(np.maximum(made_of, above) + noise + hidden[:, j:], below)
        values[j, :, j:] = value
        expected[j, :, j:] = _or_infinite(smooth)
        local[j, :, j:] = _or_infinite(above + noise)
        error_bars[j, :, j:] = _or_infinite(np.where(settled[:, j:], smooth, rough))
        if j + 1 < min(ORDERS, steps):
            finer = value[:, 1:]
            value, noise = _next_column(value, noise, ratio ** powers[j])
            made_of = np.abs(value - finer)
    return Tableau(values, error_bars, expected, local)


def _settling(slopes: Floats, roundoff: Floats, decay: float) -> Flags:
    """Rungs at the end of three (of two at the top) whose slopes settle as those of a smooth f do.

    They draw together by about what is due, `decay`, from rung to rung, or agree within roundoff.
    """
    distance = _from_rung_above(slopes)
    calm = np.zeros(slopes.shape, dtype=bool)
    allowed = np.maximum(distance[:, :-1] / decay, roundoff[:, 1:] + roundoff[:, :-1])
    calm[:, 1:] = (distance[:, 1:] <= allowed) & np.isfinite(distance[:, :-1])
    settled = np.zeros(slopes.shape, dtype=bool)
    settled[:, 1:] = calm[:, 1:] & calm[:, :-1]
    settled[:, 2:3] = calm[:, 2:3]
    return settled


def _or_infinite(error_bars: Floats) -> Floats:
    return np.nan_to_num(error_bars, nan=np.inf, posinf=np.inf)


def _next_column(value: Floats, noise: Floats, factor: float) -> tuple[Floats, Floats]:
    return (
        (factor * value[:, 1:] - value[:, :-1]) / (factor - 1),
        (factor * noise[:, 1:] + noise[:, :-1]) / (factor - 1),
    )


def _from_rung_above(column: Floats) -> Floats:
    """Distance of each entry to the one a rung above; the topmost has nothing to agree with."""
    distance = np.full_like(column, np.inf)
    distance[:, 1:] = np.abs(column[:, 1:] - column[:, :-1])
    return distance


def _beyond_noise_of_smaller_rungs(column: Floats, noise: Floats) -> Floats:
    """How much further each estimate is from that of some smaller rung than the roundoff of the latter allows."""
    beyond = np.zeros_like(column)
    for rung in range(1, column.shape[1]):
        distance = np.abs(column[:, :rung] - column[:, rung : rung + 1]) - noise[:, rung : rung + 1]
        beyond[:, :rung] = np.fmax(beyond[:, :rung], distance)
    return beyond


def _best(tableau: Tableau) -> tuple[Floats, Floats, Indices]:
    """For each function the estimate with the smallest error bar, that error bar, and its rung."""
    orders, count, steps = tableau.values.shape
    values = tableau.values.transpose(1, 0, 2).reshape(count, orders * steps)
    error_bars = tableau.error_bars.transpose(1, 0, 2).reshape(count, orders * steps)
    rows, best = np.arange(count), np.argmin(error_bars, axis=1)
    return values[rows, best], error_bars[rows, best], np.asarray(best % steps, dtype=np.int64)
