"""What f does between 0 and the smallest step of a ladder, where a gradient too steep to be seen could still hold."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.verdicts.entry_check import EntryCheck

LEVELS = 12
"""At how many steps, one a decade, to look below the smallest one, at most."""

STRAIGHT = 0.05
"""How much the slope may change there: for all but noise and curvature f is a straight line between such steps."""

ROUNDING = 16.0
"""Noise of no more machine epsilons of f than this is its rounding, which hides nothing that could be seen."""

IN_HIDING = 2.0 ** -np.arange(8)
"""Where to look for a slope that noise may hide, in multiples of the width over which it rises by the noise ..."""

IN_A_ROW = 4
"""... and how many must agree there one after the other: slopes of noise that is nothing else do so by chance once in
ten thousand times."""


def may_have_hidden_slope(check: EntryCheck, which: Indices, unit: Floats, off: Floats) -> Flags:
    """Whether f does not go on below the ladder as it does on it, so that the gradient on trial may be right there.

    So x/(|x| + 1e-15) rises, sqrt(x + 1e-20), or the norm of a row of zeros. Where f is seen to be straight there is
    no room for another slope, however steep.

    Args:
        check: what is tried.
        which: shape (K,), the functions whose gradients are off.
        unit: shape (K,), what the steps of the ladder were multiples of.
        off: shape (K,), how far they are off the derivatives that the ladder gave.
    """
    with np.errstate(all="ignore"):
        return _bends(check, which, unit, off) | _slopes_in_hiding(check, which, off)


def _bends(check: EntryCheck, which: Indices, unit: Floats, off: Floats) -> Flags:
    """Whether f, on its way from the smallest step of the ladder to 0, leaves the straight line, on either side."""
    visible = check.visible
    largest = check.ladder.rungs[-1] * unit
    bends = off * largest > visible  # else the slope is not so steep that it would be seen there
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


def _slopes_in_hiding(check: EntryCheck, which: Indices, off: Floats) -> Flags:
    """Whether f has the gradient on trial for its slope where it would rise by no more than the noise.

    What looks like noise may be f itself, far below the smallest step: sin(10¹²·x). Its slopes there agree with the
    gradient, one after the other, as those of noise do not.
    """
    if check.roundoff <= ROUNDING * check.noise.epsilon * abs(check.noise.at_zero):
        return np.zeros(len(which), dtype=bool)
    analytic = check.analytic[which]
    steps = (check.roundoff / off)[:, None] * IN_HIDING
    taken, values = _sampled(check, which, np.concatenate([steps, -steps], axis=1))
    half = len(IN_HIDING)
    slopes = (values[:, :half] - values[:, half:]) / (taken[:, :half] - taken[:, half:])
    # Where f is too coarse to move at all, a gradient near 0 is not what agrees.
    agree = np.abs(slopes - analytic[:, None]) < np.minimum(off, np.abs(analytic))[:, None] / 4
    in_a_row = np.lib.stride_tricks.sliding_window_view(agree, IN_A_ROW, axis=1)
    return np.asarray(np.any(np.all(in_a_row, axis=2), axis=1))


def _sampled(check: EntryCheck, which: Indices, steps: Floats) -> tuple[Floats, Floats]:
    """The steps as θ's precision lets them be, and f there; all (K, S)."""
    samples = check.sampler(np.repeat(which, steps.shape[1]), steps.ravel())
    return samples.steps.reshape(steps.shape), samples.values.reshape(steps.shape)
