"""A closer look at entries that disagree, on a ladder of steps: match, kink, mismatch or undecided."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import SIGMAS
from torch_gradcheck.differences.richardson import COARSE, FINE, Estimates, Tableau
from torch_gradcheck.verdicts.entry_check import ACCUSATION, EntryCheck, Outcome
from torch_gradcheck.verdicts.hidden_slopes import may_have_hidden_slope
from torch_gradcheck.verdicts.plateaus import stands_on_a_plateau
from torch_gradcheck.verdicts.step_choice import probes_of

LOW_PRECISION = 1e-10
"""A machine epsilon above this is that of float32 or less."""

HIDING = 0.1
"""A piece of f this small against the size of its argument is not believed to have a slope of its own."""


def refined(check: EntryCheck, which: Indices, unit: Floats) -> tuple[Estimates, NDArray[np.int8]]:
    """Estimates and outcomes from the coarse ladder, and from the fine one where only a kink could still excuse."""
    estimates = check.climb(which, unit, check.ladder)
    outcome = _outcomes(check, which, estimates)
    resolved = np.abs(check.analytic[which] - estimates.central) > ACCUSATION * estimates.error_bar
    open_ones = np.flatnonzero((outcome == Outcome.UNDECIDED) & resolved)
    if len(open_ones) and check.ladder is COARSE:
        finer = check.climb(which[open_ones], unit[open_ones], FINE)
        settled = _outcomes(check, which[open_ones], finer)
        agree = np.abs(finer.central - estimates.central[open_ones]) <= finer.error_bar + estimates.error_bar[open_ones]
        outcome[open_ones] = np.where(agree, settled, Outcome.UNDECIDED)
        estimates = estimates.replaced(open_ones[agree], finer, np.flatnonzero(agree))
    suspected = np.flatnonzero(outcome == Outcome.MISMATCH)
    if len(suspected):
        functions, units, central = which[suspected], unit[suspected], estimates.central[suspected]
        tableau = Tableau(*(column[:, suspected] for column in estimates.tableau))
        excused = may_have_hidden_slope(check, functions, units, np.abs(check.analytic[functions] - central))
        excused |= stands_on_a_plateau(check, functions, units, central, tableau)
        outcome[suspected[excused]] = Outcome.UNDECIDED
    return estimates, outcome


def _outcomes(check: EntryCheck, which: Indices, estimates: Estimates) -> NDArray[np.int8]:
    """Match, kink, mismatch or undecided, from one ladder's estimates."""
    analytic, central = check.analytic[which], estimates.central
    off = np.abs(analytic - central)
    match = np.isfinite(estimates.error_bar) & check.agrees(which, central, estimates.error_bar)
    between = off <= np.abs(estimates.jump) / 2 + estimates.error_bar + estimates.jump_error_bar
    kink = estimates.kinked & between
    outside = off > estimates.half_width + check.tolerance * (np.abs(analytic) + np.abs(central))
    bar = _not_lucky(check, estimates.error_bar)
    wrong = outside & ~check.agrees(which, central, bar, margin=ACCUSATION)
    wrong &= _hiding_place(check, off) <= HIDING * check.scale[which]
    wrong &= estimates.step * check.unit[which] <= check.scale[which]  # f was seen from closer than its own size
    choices = [Outcome.MATCH, Outcome.KINK, Outcome.MISMATCH]
    return np.select([match, kink, wrong], choices, default=Outcome.UNDECIDED).astype(np.int8)


def _not_lucky(check: EntryCheck, error_bar: Floats) -> Floats:
    """The error bars to accuse by: in a low precision none is smaller than is usual in its tensor.

    Few values of f differ at all there, and by chance the rungs of some entry agree much better than they should.
    """
    if check.noise.epsilon < LOW_PRECISION:
        return error_bar
    probes = probes_of(check.analytic)
    usual = check.climb(probes, check.unit[probes], check.ladder).error_bar
    return np.maximum(error_bar, float(np.median(usual)))


def _hiding_place(check: EntryCheck, off: Floats) -> Floats:
    """The width of a piece of f, right at 0, that could have the gradient on trial for its slope and not be seen.

    Its rise would be below the noise.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(SIGMAS * check.roundoff / off)
