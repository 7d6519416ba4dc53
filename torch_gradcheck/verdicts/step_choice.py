"""Chooses the stencil (a step, or steps and an extrapolation) for all entries of a tensor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.differences.richardson import (
    COARSE,
    NO_DIFFERENCES,
    Differences,
    Estimates,
    Stencil,
    stencil_for,
)
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryCheck, EntryResults

SMALL_TENSOR = 128
"""A tensor of at most this many entries is differenced as a whole at once, instead of a few entries first."""

MANY = 0.5
"""Where more than half of the entries disagree, it is worth looking for a stencil that suits them."""

CLOSER = 4.0
"""A stencil suits where one with a fourth of its step gives the same derivatives."""


class Differenced(NamedTuple):
    """Entries already differenced by the chosen stencil, so that they need not be evaluated again.

    Attributes:
        which: their positions in the tensor, sorted.
        differences: of them.
    """

    which: Indices
    differences: Differences


NONE_YET = Differenced(np.empty(0, dtype=np.int64), NO_DIFFERENCES)


def first_stencil(check: EntryCheck, previous_stencil: Stencil | None) -> tuple[Stencil, Differenced, bool]:
    """The stencil for all entries, the entries that were differenced by it on the way, and whether it was looked for.

    It is `check.eps` where that is given, the default step where that does not drown in the noise, else the best
    stencil of a ladder over a few entries.

    Args:
        check: the gradient on trial and the functions it should be the gradient of.
        previous_stencil: the stencil that suited the tensor before; tried where the default step drowns in noise.
    """
    if check.eps is not None:
        return Stencil(check.eps, 0), NONE_YET, True
    default = _default(check)
    if previous_stencil is not None and _drowns(check, default) and not _drowns(check, previous_stencil):
        default = previous_stencil
    small = len(check.analytic) <= SMALL_TENSOR
    first = np.arange(len(check.analytic), dtype=np.int64) if small else probes_of(check)
    differenced = Differenced(first, check.through(default, first))
    if not len(first) or not _drowns(check, default, differenced.differences):
        return default, differenced, False
    probes = probes_of(check)
    estimates = check.climb(probes, check.unit[probes], COARSE)
    among = np.searchsorted(first, probes)
    stencil, typical = stencil_for(estimates.tableau, _needed(check, estimates))
    better = typical < float(np.median(differenced.differences.roundoff[among])) and np.isfinite(typical)
    return (stencil, NONE_YET, True) if better else (default, differenced, True)


def better_stencil(check: EntryCheck, results: EntryResults, suspects: Indices) -> Stencil | None:
    """The stencil of a ladder over a few entries, where that finds other derivatives than the one so far; else None.

    The default step, chosen by the noise of J alone, may be too large for a steep J. The stencil that suited the tensor
    before, which is taken where the default step drowns, may cross corners of J at most entries of this one.

    Args:
        check: the gradient on trial, which disagrees with differences by the stencil so far.
        results: with these differences.
        suspects: the entries that disagree.
    """
    probes = probes_of(check)
    if _drowns(check, _default(check)):
        closer = results.stencil._replace(step=results.stencil.step / CLOSER)
        if len(suspects) <= MANY * len(check.analytic):
            return None
        found = check.through(closer, probes)
        if _same_derivatives(check, results, probes, found.central, found.roundoff):
            return None
    estimates = check.climb(probes, check.unit[probes], COARSE)
    if _same_derivatives(check, results, probes, estimates.central, estimates.error_bar):
        return None  # the step suits, and the gradient is wrong
    stencil, typical = stencil_for(estimates.tableau, _needed(check, estimates))
    return stencil if np.isfinite(typical) else None


def _default(check: EntryCheck) -> Stencil:
    return Stencil(first_step(check.noise), 0)


def _same_derivatives(
    check: EntryCheck, results: EntryResults, probes: Indices, other: Floats, other_error_bar: Floats
) -> bool:
    """Whether most of the probes have the same derivatives in the results and by `other`, shape of `probes`."""
    numeric = results.numeric[probes]
    allowed = check.tolerance * np.abs(numeric) + results.error_bar[probes] + other_error_bar
    return bool(np.mean(np.abs(numeric - other) <= allowed) > 0.5)


def _needed(check: EntryCheck, estimates: Estimates | None = None) -> float:
    """The error bar that resolves a relative error of a quarter of the tolerance in a typical entry.

    At a tolerance of 1e-5 and entries near 0.1 it is 2.5e-7. Infinite where gradient and derivatives are both zero to
    within their error bars: no stencil resolves more.
    """
    typical = root_mean_square(check.analytic[np.isfinite(check.analytic)])
    if estimates is not None:
        resolved = estimates.central[np.abs(estimates.central) > estimates.error_bar]
        typical = max(typical, root_mean_square(resolved[np.isfinite(resolved)]))
        if typical <= float(np.median(estimates.error_bar)):
            return float("inf")
    return check.tolerance / 4 * typical


def _drowns(check: EntryCheck, stencil: Stencil, found: Differences = NO_DIFFERENCES) -> bool:
    """Whether the roundoff of this stencil hides a relative error of a quarter of the tolerance.

    Relative to the gradient or, where one that was lost is much smaller, to the derivatives `found` by it.
    """
    resolved = found.central[np.abs(found.central) > CONTRADICTION * found.roundoff]
    needed = max(_needed(check), check.tolerance / 4 * root_mean_square(resolved[np.isfinite(resolved)]))
    return check.noise.sigma_at_zero / stencil.step + check.noise.growth > needed


def probes_of(check: EntryCheck) -> Indices:
    """Positions of the entry with the largest gradient and of `check.probes` spread evenly over the tensor, sorted."""
    analytic = check.analytic
    spread = np.linspace(0, len(analytic) - 1, min(check.probes, len(analytic))).astype(np.int64)
    largest = int(np.argmax(np.nan_to_num(np.abs(analytic))))
    return np.unique(np.append(spread, largest))
