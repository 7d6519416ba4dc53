"""A derivative along one direction as a question to the ladders of `differences.trial`."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Ladder
from torch_gradcheck.differences.sampling import Sampler
from torch_gradcheck.verdicts.entry_check import EntryCheck, EntryResults, Outcome

SHORT = Ladder(ratio=4.0, smallest=4.0**-5.5)
"""Six steps: where the first is known to be about right, the rest of a long ladder tells nothing more."""

SMOOTH = 0.05
"""How much J's slopes on both sides of θ may differ, against what the gradient is off by, for J to be smooth there.

At a kink a gradient need not lie between the two slopes along a direction through many coordinates.
"""


def entry_check_of(
    sampler: Sampler, analytic: Floats, unit: Floats, scale: Floats, noise: Noise, tolerance: float
) -> EntryCheck:
    """Whether J has these slopes, where it is known to have no kink at θ itself.

    Args:
        sampler: J along directions or coordinates.
        analytic: the slopes on trial.
        unit: the largest step to take along each.
        scale: the step along each that moves some tensor by its own size.
        noise: of J.
        tolerance: the largest relative error that passes.
    """
    return EntryCheck(
        sampler=sampler,
        at_zero=lambda: noise.at_zero,
        eager_sampler=sampler,
        nearby=None,
        nearby_analytic=None,
        analytic=analytic,
        analytic_epsilon=noise.epsilon,
        unit=unit,
        scale=scale,
        noise=noise,
        tolerance=tolerance,
        eps=None,
        ladder=SHORT,
    )


def contradicts(results: EntryResults, analytic: float) -> bool:
    """Whether a slope on trial along one direction is wrong, and J is smooth along it."""
    off, jump = results.numeric[0] - analytic, results.right[0] - results.left[0]
    return bool(results.outcome[0] == Outcome.MISMATCH and abs(jump) <= SMOOTH * abs(off))


def roundoff_of(noise: Noise) -> float:
    """The error bar of a slope of J at a step of 1."""
    return float(noise.of_slope(np.array([2.0]), np.array([noise.at_zero]))[0])
