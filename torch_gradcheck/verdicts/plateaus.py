"""Whether f is a staircase: then small steps do not leave the stair that they stand on, and say nothing of its slope.

So it is where a part of f is computed in a lower precision. However well the small steps agree with each other, what
f's slope is depends on how closely one looks.
"""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import Tableau
from torch_gradcheck.verdicts.entry_check import EntryCheck

BETTER = 4.0
"""How many times better larger steps must agree with a gradient, and with each other, than with smaller ones."""

HALVINGS = 40
"""How closely an edge is looked at: 2⁻⁴⁰ of where it lies is a few digits of the argument."""

LAST = 8
"""Over how many of these an edge must not become lower; a slope would, 256 times."""


def stands_on_a_plateau(check: EntryCheck, which: Indices, unit: Floats, central: Floats, tableau: Tableau) -> Flags:
    """Whether larger steps give the gradient on trial, and f has an edge between these and the smaller ones.

    Args:
        check: what is tried.
        which: shape (K,), the functions.
        unit: shape (K,), what the steps of the ladder were multiples of.
        central: shape (K,), the derivatives that the ladder gave, off which the gradients are.
        tableau: every estimate of these, from every rung.
    """
    with np.errstate(all="ignore"):
        reach = _supporting_step(check, which, central, tableau) * unit
        result = np.isfinite(reach)
        supported = np.flatnonzero(result)
        if len(supported):
            result[supported] = _has_an_edge(check, which[supported], reach[supported], central[supported])
    return np.asarray(result)


def _supporting_step(check: EntryCheck, which: Indices, central: Floats, tableau: Tableau) -> Floats:
    """The smallest step, in units, with an estimate that is next to the gradient on trial; NaN without."""
    analytic = check.analytic[which]
    off = np.abs(analytic - central)
    near = np.maximum(np.abs(tableau.values - analytic[:, None]), tableau.local) <= off[:, None] / BETTER
    rungs = np.any(near, axis=0)
    steps = np.where(rungs, check.ladder.rungs[: rungs.shape[1]], np.nan)
    return np.asarray(np.fmin.reduce(steps, axis=1))


def _has_an_edge(check: EntryCheck, which: Indices, reach: Floats, slope: Floats) -> Flags:
    """Whether f jumps within `reach` of 0: halving the interval where it rises most besides `slope` does not end it."""
    left, right = -reach, reach
    at_left, at_right = (check.sampler(which, end).values for end in (left, right))
    heights = []
    for _ in range(HALVINGS):
        samples = check.sampler(which, (left + right) / 2)
        middle, at_middle = samples.steps, samples.values
        before = np.abs(at_middle - at_left - slope * (middle - left))
        after = np.abs(at_right - at_middle - slope * (right - middle))
        first = before > after
        left, at_left = np.where(first, left, middle), np.where(first, at_left, at_middle)
        right, at_right = np.where(first, middle, right), np.where(first, at_middle, at_right)
        heights.append(np.maximum(before, after))
    return np.asarray((heights[-1] > check.visible) & (heights[-1] > heights[-1 - LAST] / 2))
