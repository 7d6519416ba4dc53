"""Chooses the step, or the extrapolation, that a whole tensor is differenced by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.differences.richardson import COARSE, Estimates, Stencil, stencil_for
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.verdicts.entry_check import EntryCheck

PROBES = 8
"""How many entries are looked at first, to see whether the step suits the tensor ..."""

FEW = 128
"""... unless there are no more than this: then it is all of them, at one go."""


class Differenced(NamedTuple):
    """Entries that have been differenced on the way, by the window that was chosen in the end.

    Attributes:
        which: their positions.
        numeric, error: the centered differences and their error bars.
    """

    which: Indices
    numeric: Floats
    error_bar: Floats


NONE_YET = Differenced(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))


def chosen_stencil(check: EntryCheck, previous_stencil: Stencil | None) -> tuple[Stencil, Differenced]:
    """The window for all entries: a given step, the default where it suits, else what a ladder at a few entries shows.

    Args:
        check: what is tried.
        previous_stencil: the window that suited the tensor before; tried where the default one drowns in noise.
    """
    if check.eps is not None:
        return Stencil(check.eps, 0), NONE_YET
    default = Stencil(first_step(check.noise), 0)
    if previous_stencil is not None and _drowns(check, default) and not _drowns(check, previous_stencil):
        default = previous_stencil
    few = len(check.analytic) <= FEW
    looked_at = np.arange(len(check.analytic), dtype=np.int64) if few else probes_of(check.analytic)
    seen = Differenced(looked_at, *check.through(default, looked_at))
    suits = not _drowns(check, default)
    if suits and bool(check.agrees(*seen).all()):
        return default, seen
    probes = probes_of(check.analytic)
    estimates = check.climb(probes, check.unit[probes], COARSE)
    among = np.searchsorted(looked_at, probes)
    if suits and _same_derivatives(check, seen.numeric[among], seen.error_bar[among], estimates):
        return default, seen  # the step suits; it is the gradient that is wrong
    stencil, typical = stencil_for(estimates.tableau, _needed(check, estimates))
    better = typical < float(np.median(seen.error_bar[among])) or suits
    return (stencil, NONE_YET) if better and np.isfinite(typical) else (default, seen)


def _same_derivatives(check: EntryCheck, numeric: Floats, error_bar: Floats, estimates: Estimates) -> bool:
    allowed = check.tolerance * np.abs(numeric) + error_bar + estimates.error_bar
    return bool(np.mean(np.abs(numeric - estimates.central) <= allowed) > 0.5)


def _needed(check: EntryCheck, estimates: Estimates | None = None) -> float:
    """The error bar that resolves a relative error of a quarter of the tolerance in a typical entry.

    Infinite where both sides are zero to within their error: no window tells more than that.
    """
    typical = _root_mean_square(check.analytic)
    if estimates is not None:
        resolved = estimates.central[np.abs(estimates.central) > estimates.error_bar]
        typical = max(typical, _root_mean_square(resolved))
        if typical <= float(np.median(estimates.error_bar)):
            return float("inf")
    return check.tolerance / 4 * typical


def _root_mean_square(values: Floats) -> float:
    return root_mean_square(values[np.isfinite(values)])


def _drowns(check: EntryCheck, stencil: Stencil) -> bool:
    """Whether roundoff alone, at this window, would hide a relative error of the size of the tolerance."""
    return check.roundoff / stencil.step + check.noise.growth > _needed(check)


def probes_of(analytic: Floats) -> Indices:
    """The entry with the largest gradient, and others evenly over the tensor."""
    spread = np.linspace(0, len(analytic) - 1, min(PROBES, len(analytic))).astype(np.int64)
    largest = int(np.argmax(np.nan_to_num(np.abs(analytic))))
    return np.unique(np.append(spread, largest))
