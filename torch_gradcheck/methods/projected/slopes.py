"""Looks at a function of a step whose slope is already believed to be known: how far is J's own slope from it?

To verify takes less than to measure. Whatever the error bar of a difference quotient, a wrong prediction agrees with it
by chance alone, so that the step which agrees best may be taken: what proves is how closely it agrees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.differences.richardson import Ladder, Stencil, extrapolated_derivatives, through_stencil
from torch_gradcheck.differences.sampling import Sampler

AROUND = Ladder(ratio=4.0, smallest=4.0**-4.5)
"""Five steps, of which the quiet one is the last but one."""

ABOVE = 64.0
"""How much larger than the quiet step the first of them is."""


class SlopeCheck(NamedTuple):
    """The slope of f against a predicted one.

    Attributes:
        step: the step of the centered difference.
        residual: how far apart they are.
        bar: what the roundoff of f may add to that.
        steps: how many steps it was chosen from.
    """

    step: float
    residual: float
    bar: float
    steps: int

    @property
    def threshold(self) -> float:
        """What an error must exceed to be seen: a residual that is smaller than the noise is luck."""
        return max(self.residual, self.bar / SIGMAS)

    def agrees(self, tolerance: float) -> bool:
        """Whether they are one slope, to within the tolerance or the roundoff; never where f is not finite."""
        return self.residual <= max(tolerance, self.bar)


def quiet_step(noise: Noise, tolerance: float) -> float:
    """The step at which the error bar of roundoff is the tolerance, for slopes of the order of 1."""
    return float(noise.of_slope(np.array([2.0]), np.array([noise.at_zero]))[0] / tolerance)


def check_at_step(sampler: Sampler, slope: float, step: float, noise: Noise) -> SlopeCheck:
    """At one step."""
    value, bar = through_stencil(sampler, np.zeros(1, np.int64), np.ones(1), Stencil(step, 0), noise)
    return SlopeCheck(step, _distance(value[0], slope), float(bar[0]), steps=1)


def check_at_best_step(sampler: Sampler, slope: float, top: float, noise: Noise, tolerance: float) -> SlopeCheck:
    """At several steps, `top` the largest; the one kept agrees well and is no lucky one.

    Kinks crossed move a difference quotient by more the larger the step: a fourth of the residual four times further
    out is what to expect of a step. Where roundoff hides much more than it must, agreement means nothing.
    """
    estimates = extrapolated_derivatives(sampler, np.zeros(1, np.int64), np.array([top]), noise, AROUND)
    steps = top * AROUND.rungs
    residuals = np.array([_distance(value, slope) for value in estimates.tableau.values[0, 0]])
    bars = noise.of_slope(2 * steps, np.full(len(steps), noise.at_zero))
    expected = np.concatenate([residuals[:1], residuals[:-1] / AROUND.ratio])
    likely = np.maximum(np.maximum(residuals, bars / SIGMAS), expected)
    best = int(np.argmin(np.where(bars <= AROUND.ratio * max(tolerance, bars.min()), likely, np.inf)))
    return SlopeCheck(float(steps[best]), float(residuals[best]), float(bars[best]), steps=len(steps))


def _distance(value: float, slope: float) -> float:
    return float(np.nan_to_num(abs(value - slope), nan=np.inf))


def resolved_from(noise: Noise) -> float:
    """The least change of f that is more than its roundoff."""
    return SIGMAS * max(noise.sigma, noise.epsilon / 2 * abs(noise.at_zero))
