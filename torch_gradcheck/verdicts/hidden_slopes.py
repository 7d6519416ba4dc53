"""Looks for a slope that f has only very close to 0, below the ladder's smallest step.

Such a slope would make a gradient right that every larger step contradicts, as for x / (|x| + 1e-15).
"""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.verdicts.entry_check import EntryCheck

LEVELS = 12
"""At most this many steps, about one a decade, from the ladder's smallest to the smallest at which the slope shows."""

STRAIGHT = 0.05
"""f counts as a straight line below the smallest step where its slope changes by at most 5 %."""

ROUNDING = 16.0
"""Noise of f of at most this many machine epsilons of f(0) is rounding, and hides no slope.

In float64, with f(0) = 1, that is 3.6e-15.
"""

HIDDEN_STEPS = 2.0 ** -np.arange(8)
"""Steps at which a slope below the noise is looked for, 1 to 1/128, in multiples of σ / off.

Over a step of σ / off, a slope that differs by `off` moves f by one standard deviation of the noise.
"""

IN_A_ROW = 4
"""How many neighbouring `HIDDEN_STEPS` must have the slope on trial. Pure noise does so once in ten thousand times."""


def may_have_hidden_slope(check: EntryCheck, which: Indices, unit: Floats, off: Floats) -> Flags:
    """Functions that may have another slope below the ladder than on it, so that the gradient on trial may be right.

    Examples: x/(|x| + 1e-15), sqrt(x + 1e-20), the norm of a row of zeros. Where f is a straight line all the way to 0,
    no other slope is possible, however steep.

    Args:
        check: the gradient on trial.
        which: shape (K,), the functions whose gradients are off.
        unit: shape (K,), the steps of the ladder were multiples of it.
        off: shape (K,), |gradient on trial − derivative by the ladder|.
    """
    with np.errstate(all="ignore"):
        return _bends(check, which, unit, off) | _slopes_below_noise(check, which, off)


def _bends(check: EntryCheck, which: Indices, unit: Floats, off: Floats) -> Flags:
    """Functions that leave a straight line between the smallest step of the ladder and 0, on either side."""
    visible = check.visible
    largest = check.ladder.rungs[-1] * unit
    bends = off * largest > visible  # elsewhere the slope on trial is too flat to show below the smallest step
    steep = np.flatnonzero(bends)
    if not len(steep):
        return np.asarray(bends)
    smallest = np.clip(visible / off[steep], np.finfo(np.float64).tiny, largest[steep])
    levels = int(np.ceil(np.log10(np.max(largest[steep] / smallest)))) + 1
    steps = np.geomspace(largest[steep], smallest, min(levels, LEVELS), axis=1)
    taken, values = _sampled(check, which[steep], np.concatenate([steps, -steps], axis=1))
    risen = values - check.at_zero()
    ends = [0, steps.shape[1]]
    right, left = (risen[:, ends] / taken[:, ends]).T
    line = np.where(taken > 0, right[:, None], left[:, None]) * taken
    allowed = STRAIGHT * np.maximum(np.abs(right), np.abs(left))[:, None] * np.abs(taken)
    bends[steep] = np.any(np.abs(risen - line) > 2 * visible + allowed, axis=1)
    return np.asarray(bends)


def _slopes_below_noise(check: EntryCheck, which: Indices, off: Floats) -> Flags:
    """Functions that have the slope on trial over steps so small that it moves f by no more than the noise.

    What was measured as noise may be f itself, as for sin(10¹²·x). Its slopes at neighbouring `HIDDEN_STEPS` agree with
    the gradient on trial; those of noise do not.
    """
    if check.noise.sigma_at_zero <= ROUNDING * check.noise.epsilon * abs(check.noise.at_zero):
        return np.zeros(len(which), dtype=bool)
    analytic = check.analytic[which]
    steps = (check.noise.sigma_at_zero / off)[:, None] * HIDDEN_STEPS
    taken, values = _sampled(check, which, np.concatenate([steps, -steps], axis=1))
    half = len(HIDDEN_STEPS)
    slopes = (values[:, :half] - values[:, half:]) / (taken[:, :half] - taken[:, half:])
    # Over steps too small for f to move, its slopes are 0: a gradient near 0 must not agree with them.
    agree = np.abs(slopes - analytic[:, None]) < np.minimum(off, np.abs(analytic))[:, None] / 4
    in_a_row = np.lib.stride_tricks.sliding_window_view(agree, IN_A_ROW, axis=1)
    return np.asarray(np.any(np.all(in_a_row, axis=2), axis=1))


def _sampled(check: EntryCheck, which: Indices, steps: Floats) -> tuple[Floats, Floats]:
    """The steps really taken, in θ's precision, and f there; both of shape (K, S)."""
    samples = check.sampler(np.repeat(which, steps.shape[1]), steps.ravel())
    return samples.steps.reshape(steps.shape), samples.values.reshape(steps.shape)
