"""Checks a predicted slope of J along a direction against difference quotients, instead of measuring the slope.

A wrong prediction agrees with a difference quotient only by chance. So the step that agrees best may be picked, and the
choice is counted in the detection power.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.differences.richardson import Ladder, Stencil, extrapolated_derivatives, through_stencil
from torch_gradcheck.differences.sampling import Sampler

AROUND_QUIET_STEP = Ladder(ratio=4.0, smallest=4.0**-4.5)
"""Five steps to choose from: 64, 16, 4, 1 and 1/4 of the quiet step."""

TOP_BY_QUIET = 64.0
"""The largest of these steps, in quiet steps."""


class SlopeCheck(NamedTuple):
    """A predicted slope of f checked against one centered difference. The predicted slope is of the order of 1.

    Attributes:
        step: of the centered difference.
        residual: |difference − predicted slope|; infinite where f is not finite.
        error_bar: of the difference, from the roundoff of f.
        steps: how many steps this one was chosen from.
    """

    step: float
    residual: float
    error_bar: float
    steps: int

    @property
    def threshold(self) -> float:
        """The smallest error of the predicted slope that shows: at least one standard deviation of noise."""
        return max(self.residual, self.error_bar / SIGMAS)

    def agrees(self, tolerance: float) -> bool:
        """Whether the residual is within the tolerance or the error bar; False where f is not finite."""
        return self.residual <= max(tolerance, self.error_bar)


def quiet_step(noise: Noise, tolerance: float) -> float:
    """The step whose roundoff equals the tolerance, for slopes of the order of 1: 4e-11 at σ = 1e-16 and 1e-5."""
    return float(noise.of_slope(np.array([2.0]), np.array([noise.at_zero]))[0] / tolerance)


class Predicted(NamedTuple):
    """Functions f_0 … f_{K−1} and their slopes.

    Attributes:
        sampler: of the functions.
        slopes: shape (K,), the predicted slopes at 0; they are to be there once the sampler has been called.
    """

    sampler: Sampler
    slopes: Floats


def checks_at_step(predicted: Predicted, step: float, noise: Noise) -> list[SlopeCheck]:
    """Checks each slope at one step.

    Args:
        predicted: the slopes.
        step: of the centered differences.
        noise: of the functions.
    """
    which = np.arange(len(predicted.slopes))
    found = through_stencil(predicted.sampler, which, np.ones(len(which)), Stencil(step, 0), noise)
    return [
        SlopeCheck(step, _distance(found.central[k], predicted.slopes[k]), float(found.roundoff[k]), steps=1)
        for k in which
    ]


def checks_at_best_step(predicted: Predicted, top: Floats, noise: Noise, tolerance: float) -> list[SlopeCheck]:
    """Checks each slope at five steps from `top` down, and returns the check that agrees best without luck.

    The residual of a step counts as no less than one standard deviation of its roundoff, and no less than 1/4 of the
    residual at the next larger step, since truncation and kinks crossed move a quotient in proportion to the step. A
    step is out of the question if its error bar is more than 4 times the tolerance or the smallest error bar.

    Args:
        predicted: the slopes.
        top: shape (K,), the largest step of each.
        noise: of the functions.
        tolerance: the largest residual that passes.
    """
    which = np.arange(len(predicted.slopes))
    found = extrapolated_derivatives(predicted.sampler, which, top, noise, AROUND_QUIET_STEP)
    quotients = found.tableau.values[0]
    return [_best(quotients[k], predicted.slopes[k], float(top[k]), noise, tolerance) for k in which]


def _best(quotients: Floats, slope: float, top: float, noise: Noise, tolerance: float) -> SlopeCheck:
    """The check by the quotient that agrees best; they belong to the steps from `top` down."""
    steps = top * AROUND_QUIET_STEP.rungs
    residuals = np.array([_distance(value, slope) for value in quotients])
    error_bars = noise.of_slope(2 * steps, np.full(len(steps), noise.at_zero))
    expected = np.concatenate([residuals[:1], residuals[:-1] / AROUND_QUIET_STEP.ratio])
    likely = np.maximum(np.maximum(residuals, error_bars / SIGMAS), expected)
    sharp = error_bars <= AROUND_QUIET_STEP.ratio * max(tolerance, error_bars.min())
    best = int(np.argmin(np.where(sharp, likely, np.inf)))
    return SlopeCheck(float(steps[best]), float(residuals[best]), float(error_bars[best]), steps=len(steps))


def _distance(value: float, slope: float) -> float:
    return float(np.nan_to_num(abs(value - slope), nan=np.inf))


def smallest_visible_change(noise: Noise) -> float:
    """A change of f above this is no roundoff: SIGMAS = 6 standard deviations."""
    return SIGMAS * noise.sigma_at_zero
