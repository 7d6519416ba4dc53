"""Steps just below the nearest corner of f, a factor of 2 apart: the largest at which f is still smooth.

The steps of `COARSE` are a factor of 8 apart. Where corners lie little beyond the steps at which noise hides the
derivative, as for a weight before a ReLU whose gradient is 1e-7 of J, one of these steps or none lies between the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.differences.richardson import Estimates, Ladder
from torch_gradcheck.verdicts.entry_check import EntryCheck, Outcome

CLOSE = Ladder(ratio=2.0, smallest=2.0**-6.5, smooth=False)
"""Seven steps, each half of the one before: from beyond the corner to an eighth of a step that does not cross it."""

WORTHWHILE = 2.0
"""Close steps are taken where their error bar may be less than half of the one so far."""


def judged_too_coarsely(check: EntryCheck, which: Indices, estimates: Estimates, outcome: NDArray[np.int8]) -> Flags:
    """Functions that are undecided, or match within an error bar that hides an error of the tolerance, shape (K,).

    Args:
        check: the gradient on trial.
        which: shape (K,), the functions.
        estimates: of their derivatives.
        outcome: shape (K,), by these estimates.
    """
    analytic = np.nan_to_num(np.abs(check.analytic[which]), posinf=0.0)
    seen = check.tolerance * np.maximum(analytic, _typical(check))
    coarse = (outcome == Outcome.MATCH) & (estimates.error_bar > seen)
    return np.asarray(coarse | (outcome == Outcome.UNDECIDED))


def allowed_in(check: EntryCheck) -> float:
    """The error that is below the tolerance of the gradient as a whole."""
    return check.tolerance * _typical(check) * float(np.sqrt(len(check.analytic)))


def below_corners(check: EntryCheck, which: Indices, unit: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    """The largest of the close steps for each function, and the error bar that is to be expected there; shape (K,).

    Args:
        check: the gradient on trial.
        which: shape (K,), the functions.
        unit: shape (K,), the steps of the ladder were multiples of it.
        slopes: shape (K, S), the centered differences at these steps.
    """
    steps = unit[:, None] * check.ladder.rungs[None, :]
    roundoff = check.noise.of_slope(2 * steps, np.full(steps.shape, check.noise.at_zero), steps=check.ladder.rungs)
    with np.errstate(all="ignore"):  # f may be infinite at a large step
        rows, uncrossed = np.arange(len(which)), _uncrossed(slopes, roundoff)
    largest = np.minimum(check.ladder.ratio * steps[rows, uncrossed], unit)
    return largest, roundoff[rows, uncrossed]


def _typical(check: EntryCheck) -> float:
    """The root mean square of the gradient on trial, where it is finite."""
    return root_mean_square(check.analytic[np.isfinite(check.analytic)])


def _uncrossed(slopes: Floats, roundoff: Floats) -> Indices:
    """The largest rung whose slope all smaller ones agree with to within roundoff, shape (K,)."""
    count, steps = slopes.shape
    agree = np.ones((count, steps), dtype=bool)
    for rung in range(1, steps):
        allowed = roundoff[:, :rung] + roundoff[:, rung : rung + 1]
        agree[:, :rung] &= ~(np.abs(slopes[:, :rung] - slopes[:, rung : rung + 1]) > allowed)
    return np.asarray(np.argmax(agree, axis=1), dtype=np.int64)
