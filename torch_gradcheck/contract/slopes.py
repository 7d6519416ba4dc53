"""A derivative along one direction on trial: the slope that autograd predicts beside centered differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import POINTS, Noise, measured_noise, noise_of_stairs
from torch_gradcheck.differences.richardson import Stencil, extrapolated_derivatives, through_stencil
from torch_gradcheck.differences.sampling import Sampler, Samples

AGREES = 1e-3
"""At first look a slope agrees that is off by less than this share of the tolerance: no wrong one is by chance."""

BELOW, ROUNDINGS = 0.1, 1e4
"""What is below a tenth of √ε or ten thousand ε of the terms that add up to a function may be how exactly kernels
compute: 1.5e-9 of them in float64, 1e-3 in float32."""

NEAR = 10.0
"""The points that noise is measured at are apart by so many times the smallest step that rounding leaves exact."""

SPREADS = 30.0
"""Predictions of a few neighbouring numbers, or of a few runs with other rounding, show it up to such a factor."""

SPACINGS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""Between points so far apart a function climbs stairs that is rounded on the way to float32, or to float16."""

Along = Callable[[float], float]
"""A function of the step along a direction."""

Rounding = Callable[[], tuple[float, float]]
"""How far rounding moves f(0), and how far its predicted slope there."""


class Verdict(Enum):
    """What differences say of a predicted slope."""

    RIGHT = auto()
    WRONG = auto()
    UNKNOWN = auto()
    """Neither: a kink, too much noise, or no number."""


class Slope(NamedTuple):
    """A slope that was judged.

    Attributes:
        predicted: by autograd.
        numeric: by centered differences.
        error_bar: of `numeric`.
        verdict: what became of it.
    """

    predicted: float
    numeric: float
    error_bar: float
    verdict: Verdict

    @classmethod
    def right(cls, predicted: float) -> Slope:
        """One that is borne out together with others."""
        return cls(predicted, predicted, 0.0, Verdict.RIGHT)

    def __str__(self) -> str:
        """Such as "0.25, where centered differences give 0.5 ± 1e-09"."""
        return f"{self.predicted:.6g}, where centered differences give {self.numeric:.6g} ± {self.error_bar:.0e}"


class Precision(NamedTuple):
    """What a slope is judged by.

    Attributes:
        epsilon: machine epsilon of the precision that the function is evaluated in.
        tolerance: the largest relative error that passes.
        scale: Σ |term| of the terms that add up to the function; they may cancel, their rounding does not.
    """

    epsilon: float
    tolerance: float
    scale: float


def judged(value: Along, predicted: Along, precision: Precision, rounding: Rounding = lambda: (0.0, 0.0)) -> Slope:
    """Judges the slope of a function of one step at 0, by four values or, where these disagree, by a ladder of steps.

    Args:
        value: f(t); a step of 1 moves the argument by its own size. NaN where f has no value.
        predicted: f'(t); that at 0 is on trial.
        precision: of f.
        rounding: of f; asked where the slope looks wrong.
    """
    with np.errstate(all="ignore"):
        slope = predicted(0.0)
        look = _first_look(value, slope, precision)
        if look.verdict is Verdict.RIGHT:
            return look
        found = _by_ladder(value, slope, precision)
        if found.verdict is Verdict.WRONG:
            found = _beyond_rounding(found, predicted, precision)
        return found if found.verdict is not Verdict.WRONG else _beyond_noise(found, value, precision, rounding)


def _beyond_noise(slope: Slope, value: Along, precision: Precision, rounding: Rounding) -> Slope:
    """A wrong slope, unless f is noisier than it looks where it stands still: rounded to stairs, or after cancellation.

    1 − y is rounded as y is, however small it is, and where y is almost 1 neighbouring numbers do not show that.
    """
    of_value, of_slope = rounding()
    again = _by_ladder(value, slope.predicted, precision, of_value)
    if again.verdict is Verdict.WRONG:
        again = _by_ladder(value, slope.predicted, precision, max(of_value, _of_stairs(value)))
    is_off = abs(again.numeric - again.predicted) > SPREADS * of_slope + again.error_bar
    return again if is_off or again.verdict is not Verdict.WRONG else again._replace(verdict=Verdict.UNKNOWN)


def _of_stairs(value: Along) -> float:
    """The noise of the stairs that a function climbs between points that are as far apart as stairs are wide."""
    centered = np.arange(POINTS) - POINTS // 2
    return max([noise_of_stairs(np.array([value(float(step)) for step in each * centered])) for each in SPACINGS])


def _beyond_rounding(slope: Slope, predicted: Along, precision: Precision) -> Slope:
    """A wrong slope, unless it is off by what the prediction changes by from one floating-point number to the next.

    Cancellation may have left few digits of it: a right one is then off by as much.
    """
    others = [predicted(NEAR * precision.epsilon * k) for k in (1, 2, 3)]
    spread = max([abs(other - slope.predicted) for other in others])
    is_off = abs(slope.numeric - slope.predicted) > SPREADS * spread
    return slope if is_off else slope._replace(verdict=Verdict.RIGHT if np.isfinite(spread) else Verdict.UNKNOWN)


def bears_out(value: Along, predicted: Sequence[float], precision: Precision) -> bool:
    """Whether four values of f have the slope that parts of its argument are predicted to add up to.

    No part is lost in the others: what the sum may be off by is a share of the smallest one that is not zero.

    Args:
        value: as in `judged`, all parts moving.
        predicted: the slope through each part, on trial.
        precision: of f.
    """
    with np.errstate(all="ignore"):
        numeric, bar = _first_difference(value, precision)
    least = min([abs(each) for each in predicted if each], default=0.0)
    return abs(numeric - sum(predicted)) <= max(AGREES * precision.tolerance * least, bar)


def _first_look(value: Along, predicted: float, precision: Precision) -> Slope:
    numeric, bar = _first_difference(value, precision)
    allowed = max(AGREES * precision.tolerance * max(abs(numeric), abs(predicted)), bar)
    return Slope(predicted, numeric, bar, Verdict.RIGHT if abs(numeric - predicted) <= allowed else Verdict.UNKNOWN)


def _first_difference(value: Along, precision: Precision) -> tuple[float, float]:
    """The slope of f at 0 by four values, and its error bar."""
    step = precision.epsilon ** (1 / 5)  # truncation, of order h⁴, is then as small as rounding
    noise = Noise(0.0, precision.epsilon * precision.scale, precision.epsilon)
    found = through_stencil(_sampler(value), ONE, np.ones(1), Stencil(step / 8, 1), noise)
    return float(found.central[0]), float(found.roundoff[0])


def _by_ladder(value: Along, predicted: float, precision: Precision, least_noise: float = 0.0) -> Slope:
    noise = _noise(value, precision)
    noise = noise._replace(sigma=max(noise.sigma, least_noise))
    found = extrapolated_derivatives(_sampler(value), ONE, np.ones(1), noise)
    numeric, bar = float(found.central[0]), float(found.error_bar[0])
    return Slope(predicted, numeric, bar, _verdict(predicted, numeric, bar, precision, bool(found.kinked[0])))


def _verdict(predicted: float, numeric: float, bar: float, precision: Precision, kinked: bool) -> Verdict:
    if not np.isfinite([predicted, numeric, bar]).all() or kinked:
        return Verdict.UNKNOWN
    floor = max(BELOW * precision.epsilon**0.5, ROUNDINGS * precision.epsilon) * precision.scale
    allowed = max(precision.tolerance * max(abs(numeric), abs(predicted)), floor)
    if abs(numeric - predicted) > allowed + bar:
        return Verdict.WRONG
    return Verdict.RIGHT if bar <= max(allowed, precision.tolerance * precision.scale) else Verdict.UNKNOWN


def _noise(value: Along, precision: Precision) -> Noise:
    """The noise of f near 0, no less than rounding makes it."""
    values = np.array([value(NEAR * precision.epsilon * k) for k in range(POINTS)])
    return Noise(float(values[0]), max(measured_noise(values), precision.epsilon * precision.scale), precision.epsilon)


def _sampler(value: Along) -> Sampler:
    def sample(_: Indices, steps: Floats) -> Samples:
        return Samples(np.array(steps, dtype=np.float64), np.array([value(float(step)) for step in steps]))

    return sample


ONE = np.zeros(1, dtype=np.int64)
"""There is one function to differentiate."""
