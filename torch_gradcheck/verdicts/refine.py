"""Refines entries that disagree, on a ladder of steps, and judges them: match, kink, mismatch or undecided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import SIGMAS
from torch_gradcheck.differences.richardson import COARSE, FINE, Estimates, Tableau
from torch_gradcheck.verdicts.close_steps import CLOSE, WORTHWHILE, allowed_in, below_corners, judged_too_coarsely
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryCheck, Outcome
from torch_gradcheck.verdicts.hidden_slopes import may_have_hidden_slope
from torch_gradcheck.verdicts.plateaus import stands_on_a_plateau
from torch_gradcheck.verdicts.step_choice import probes_of

LOW_PRECISION = 1e-10
"""A machine epsilon above this is that of float32 (1.2e-7) or of a lower precision."""

HIDES = 1e3
"""An error bar hides everything if f may change by 1e3 times its value in it, and by 1e6 times what it did."""

LARGEST_HIDDEN_PIECE = 0.1
"""Widest piece of f around 0 that is assumed to have no slope of its own, as a share of the argument's size.

Noise can hide a piece of f around 0 whose slope is the gradient on trial. If that piece would be narrower than this
share, its existence is not believed, and the gradient is called wrong. If it would be wider, the entry stays undecided.
"""


def refined(check: EntryCheck, which: Indices, unit: Floats) -> tuple[Estimates, NDArray[np.int8]]:
    """Estimates and outcomes of `which` by `on_ladder`, those between the steps looked at.

    A mismatch becomes UNDECIDED where f may have the slope on trial below the smallest step (`hidden_slopes`) or where
    f is quantised (`plateaus`).

    Args:
        check: the gradient on trial.
        which: shape (K,), the entries.
        unit: shape (K,), the steps of the ladder are multiples of it.
    """
    estimates, outcome = on_ladder(check, which, unit)
    suspected = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(suspected):
        functions, units, central = which[suspected], unit[suspected], estimates.central[suspected]
        tableau = Tableau(*(column[:, suspected] for column in estimates.tableau))
        excused = may_have_hidden_slope(check, functions, units, np.abs(check.analytic[functions] - central))
        excused |= stands_on_a_plateau(check, functions, units, central, tableau)
        outcome[suspected[excused]] = Outcome.UNDECIDED
    return estimates, outcome


def on_ladder(check: EntryCheck, which: Indices, unit: Floats) -> tuple[Estimates, NDArray[np.int8]]:
    """Estimates and outcomes from the check's ladder, and from closer ones where that leaves something open.

    Steps just below the nearest corner are tried where nothing is decided or an error of the tolerance would not show
    (`close_steps`), and `FINE` where a kink is then only suspected.

    Args:
        check: the gradient on trial.
        which: shape (K,), the entries.
        unit: shape (K,), the steps of the ladder are multiples of it.
    """
    estimates = check.climb(which, unit, check.ladder)
    outcome = _outcomes(check, which, estimates)
    if check.ladder is COARSE:
        estimates = _closer(check, which, unit, estimates, outcome)
        estimates = _finer(check, which, unit, estimates, outcome)
    return estimates, outcome


def _closer(
    check: EntryCheck, which: Indices, unit: Floats, estimates: Estimates, outcome: NDArray[np.int8]
) -> Estimates:
    """The estimates with those from close steps that verify the gradient on trial; `outcome` is MATCH there, in place.

    To verify takes less than to measure. Noise may hide corners below any step, so that an error bar of close steps is
    too small to contradict a gradient by; but a wrong gradient agrees with their estimate by chance only.
    """
    coarse = np.flatnonzero(judged_too_coarsely(check, which, estimates, outcome))
    largest, expected = below_corners(check, which[coarse], unit[coarse], estimates.tableau.values[0, coarse])
    worthwhile = expected * WORTHWHILE < np.maximum(
        estimates.error_bar[coarse], np.where(outcome[coarse] == Outcome.UNDECIDED, allowed_in(check), 0.0)
    )
    coarse, largest = coarse[worthwhile], largest[worthwhile]
    if not len(coarse):
        return estimates
    closer, so_far = check.climb(which[coarse], largest, CLOSE), estimates.error_bar[coarse]
    agrees = check.agrees(which[coarse], closer.central, closer.error_bar)
    undecided = outcome[coarse] == Outcome.UNDECIDED
    sharper = closer.error_bar < so_far
    # An undecided entry may become a match by a wider error bar if an error of its size is no matter to the tensor.
    taken = agrees & (sharper | undecided & (closer.error_bar <= allowed_in(check)))
    taken |= sharper & ~undecided & check.agrees(which[coarse], closer.central, so_far)
    with np.errstate(all="ignore"):
        taken &= np.abs(closer.central - estimates.central[coarse]) <= closer.error_bar + so_far
    closer = replace(
        closer, step=closer.step * largest / unit[coarse], error_bar=np.where(agrees, closer.error_bar, so_far)
    )
    outcome[coarse[taken]] = Outcome.MATCH
    return estimates.replaced(coarse[taken], closer, np.flatnonzero(taken))


def _finer(
    check: EntryCheck, which: Indices, unit: Floats, estimates: Estimates, outcome: NDArray[np.int8]
) -> Estimates:
    """The estimates with those of `FINE` where a kink is only suspected; `outcome` is judged again, in place."""
    resolved = np.abs(check.analytic[which] - estimates.central) > CONTRADICTION * estimates.error_bar
    doubtful = np.flatnonzero((outcome == Outcome.UNDECIDED) & resolved)
    if not len(doubtful):
        return estimates
    finer = check.climb(which[doubtful], unit[doubtful], FINE)
    finer_outcome = _outcomes(check, which[doubtful], finer)
    agree = np.abs(finer.central - estimates.central[doubtful]) <= finer.error_bar + estimates.error_bar[doubtful]
    outcome[doubtful] = np.where(agree, finer_outcome, Outcome.UNDECIDED)
    return estimates.replaced(doubtful[agree], finer, np.flatnonzero(agree))


def _outcomes(check: EntryCheck, which: Indices, estimates: Estimates) -> NDArray[np.int8]:
    """`Outcome` values, shape (K,), by the estimates of one ladder."""
    analytic, central = check.analytic[which], estimates.central
    off = np.abs(analytic - central)
    match = ~_hides_everything(check, which, estimates) & check.agrees(which, central, estimates.error_bar)
    between = off <= np.abs(estimates.jump) / 2 + estimates.error_bar + estimates.jump_error_bar
    kink = estimates.kinked & between
    outside = off > estimates.half_width + check.tolerance * (np.abs(analytic) + np.abs(central))
    error_bar = _at_least_usual(check, estimates.error_bar)
    wrong = outside & ~check.agrees(which, central, error_bar, margin=CONTRADICTION)
    wrong &= could_not_hide(check, which, off, estimates.step * check.unit[which])
    choices = [Outcome.MATCH, Outcome.KINK, Outcome.MISMATCH]
    return np.select([match, kink, wrong], choices, default=Outcome.UNDECIDED).astype(np.int8)


def _hides_everything(check: EntryCheck, which: Indices, estimates: Estimates) -> Flags:
    """Error bars that any gradient would be within, as where f jumps at 0 itself: to agree proves nothing then.

    They allow f to change by many times its own value over the largest step, and far more than it did.
    """
    bar, largest = estimates.error_bar, check.unit[which]
    changed = np.maximum(np.abs(estimates.tableau.values[0, :, 0]), np.abs(check.analytic[which]))
    with np.errstate(all="ignore"):
        hides = (bar * largest > HIDES * abs(check.noise.at_zero)) & (bar > HIDES**2 * changed)
    return np.asarray(hides | ~np.isfinite(bar))


def _at_least_usual(check: EntryCheck, error_bar: Floats) -> Floats:
    """The error bars to call a gradient wrong by: below float64, no smaller than the median of the tensor's probes.

    In a low precision f takes few different values. By chance the rungs of some entry then agree far too well.
    """
    if check.noise.epsilon < LOW_PRECISION:
        return error_bar
    probes = probes_of(check)
    usual = check.climb(probes, check.unit[probes], check.ladder).error_bar
    return np.maximum(error_bar, float(np.median(usual)))


def could_not_hide(check: EntryCheck, which: Indices, off: Floats, step: Floats) -> Flags:
    """Whether noise and the step are so small that no piece of f around 0 is likely to have the slope on trial.

    Over the width 6σ / off, the two slopes differ by no more than the noise. Example: at σ = 1e-16 and a gradient that
    is off by 1e-3, it is 6e-13. A step that is larger than the argument says little about f at 0.

    Args:
        check: the gradient on trial.
        which: shape (K,), the functions.
        off: shape (K,), how far their gradients are off.
        step: shape (K,), the smallest step that says so.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        hidden_piece = SIGMAS * check.noise.sigma_at_zero / off
    return np.asarray((hidden_piece <= LARGEST_HIDDEN_PIECE * check.scale[which]) & (step <= check.scale[which]))
