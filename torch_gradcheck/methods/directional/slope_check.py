"""The gradient's slope along a direction on trial, as an EntryCheck that `verdicts` can judge."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Ladder
from torch_gradcheck.differences.sampling import Sampler
from torch_gradcheck.verdicts.entry_check import EntryCheck, EntryResults, Outcome

SHORT = Ladder(ratio=4.0, smallest=4.0**-5.5)
"""Six steps from 1 to 1e-3 of the unit. The right one is known to be near 1/16, so that more would add nothing."""

FEW_STEPS = Ladder(ratio=4.0, smallest=4.0**-2.5)
"""Three steps from 1 to 1/16 of the unit: enough where f is smooth, and no verdict where it is not."""

SMOOTH = 0.05
"""J counts as smooth along a direction if its two one-sided slopes differ by at most 5 % of the gradient's error.

Only there can a direction contradict a gradient. At a kink, a right gradient need not lie between the two slopes along
a direction through many coordinates.
"""


def entry_check_of(
    sampler: Sampler,
    analytic: Floats,
    unit: Floats,
    scale: Floats,
    noise: Noise,
    tolerance: float,
    ladder: Ladder = SHORT,
) -> EntryCheck:
    """The check of K slopes on trial, where J is known to have no kink at θ itself.

    Args:
        sampler: J along K directions or coordinates; or a substitute of J, whose value at θ is `noise.at_zero`.
        analytic: shape (K,), the slopes on trial.
        unit: shape (K,), the largest step to take along each.
        scale: shape (K,), the step along each that moves some tensor by its own size.
        noise: of J.
        tolerance: the largest relative error that passes.
        ladder: the steps, in multiples of `unit`.
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
        ladder=ladder,
    )


def contradicts(results: EntryResults, analytic: float) -> bool:
    """Whether the results of one direction contradict its slope `analytic`: a mismatch, and J is smooth there."""
    off, jump = results.numeric[0] - analytic, results.right[0] - results.left[0]
    return bool(results.outcome[0] == Outcome.MISMATCH and abs(jump) <= SMOOTH * abs(off))


def error_bar_at_unit_step(noise: Noise) -> float:
    """The error bar of a centered difference of J at a step of 1; at a step h it is this divided by h."""
    return float(noise.of_slope(np.array([2.0]), np.array([noise.at_zero]))[0])
