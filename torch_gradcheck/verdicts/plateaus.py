"""Detects a quantised J: a part of it is computed in a lower precision.

J is then constant over short distances, its plateaus, and jumps in between. Small steps do not leave a plateau: they
agree with each other and prove nothing. Example: float32 activations in a float64 model have plateaus about 1e-7 wide.
"""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import Tableau
from torch_gradcheck.verdicts.entry_check import EntryCheck

BETTER = 4.0
"""Larger steps support a gradient that they agree with, and with each other, 4 times better than smaller steps do."""

LOW_STAIRS = 0.1
"""Stairs of rounding show at steps below a tenth of the argument's size; those of a quantiser may be larger."""

HALVINGS = 40
"""How often the interval around an edge is halved: its width falls to 2⁻⁴⁰ = 9e-13 of the first."""

LAST_HALVINGS = 8
"""Over the last 8 halvings the rise of f must fall to no less than one half; over a slope it falls to 1/256."""


def stands_on_a_plateau(check: EntryCheck, which: Indices, unit: Floats, central: Floats, tableau: Tableau) -> Flags:
    """Functions whose larger steps give the gradient on trial and that jump between these steps and 0.

    Where the gradient is small, the jumps of all larger steps are as large as it is. So where most functions stand on a
    plateau, and the stairs are low, the others do as well, if they jump, and some step is as near to the gradient on
    trial as it is for those.

    Args:
        check: the gradient on trial.
        which: shape (K,), the functions.
        unit: shape (K,), the steps of the ladder were multiples of it.
        central: shape (K,), the derivatives by the ladder, which contradict the gradient on trial.
        tableau: every estimate of these functions, from every rung.
    """
    with np.errstate(all="ignore"):
        distance = np.maximum(np.abs(tableau.values - check.analytic[which][:, None]), tableau.local)
        step = _supporting_step(check, distance, np.abs(check.analytic[which] - central))
        supported = np.isfinite(step)
        result = _has_edges(check, which, step * unit, central, supported)
        if 2 * np.count_nonzero(result) > len(which) and np.median(step[result]) < LOW_STAIRS:
            nearest = np.fmin.reduce(distance, axis=(0, 2))
            alike = ~supported & (nearest <= BETTER * np.max(nearest[result]))
            result |= _has_edges(check, which, np.max(step[result]) * unit, central, alike)
    return result


def _supporting_step(check: EntryCheck, distance: Floats, off: Floats) -> Floats:
    """The smallest step, in units, with an estimate close to the gradient on trial; NaN where there is none.

    Args:
        check: the gradient on trial.
        distance: shape (ORDERS, K, S), how far estimates are from it, and from that of the next larger step.
        off: shape (K,), how far the derivatives by the ladder are from it.
    """
    rungs = np.any(distance <= off[:, None] / BETTER, axis=0)
    steps = np.where(rungs, check.ladder.rungs[: rungs.shape[1]], np.nan)
    return np.asarray(np.fmin.reduce(steps, axis=1))


def _has_edges(check: EntryCheck, which: Indices, reach: Floats, slope: Floats, asked: Flags) -> Flags:
    """Those of the functions asked for that jump within `reach` of 0; False for all others."""
    found = np.zeros(len(which), dtype=np.bool_)
    if asked.any():
        found[asked] = _has_an_edge(check, which[asked], reach[asked], slope[asked])
    return found


def _has_an_edge(check: EntryCheck, which: Indices, reach: Floats, slope: Floats) -> Flags:
    """Functions that jump within `reach` of 0, found by bisection.

    The half is kept in which f, less the line of slope `slope`, moves most. At a jump that move does not shrink.
    """
    left, right = -reach, reach
    at_left, at_right = (check.sampler(which, end).values for end in (left, right))
    rises = []
    for _ in range(HALVINGS):
        samples = check.sampler(which, (left + right) / 2)
        middle, at_middle = samples.steps, samples.values
        before = np.abs(at_middle - at_left - slope * (middle - left))
        after = np.abs(at_right - at_middle - slope * (right - middle))
        first = before > after
        left, at_left = np.where(first, left, middle), np.where(first, at_left, at_middle)
        right, at_right = np.where(first, middle, right), np.where(first, at_middle, at_right)
        rises.append(np.maximum(before, after))
    return np.asarray((rises[-1] > check.visible) & (rises[-1] > rises[-1 - LAST_HALVINGS] / 2))
