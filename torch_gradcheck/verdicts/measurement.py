"""A whole gradient measured: a centered difference at every entry, by one stencil, and the entries that disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.noise import SIGMAS
from torch_gradcheck.differences.richardson import Differences, Stencil
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryCheck, EntryResults
from torch_gradcheck.verdicts.refine import could_not_hide
from torch_gradcheck.verdicts.step_choice import NONE_YET, Differenced, better_stencil, first_stencil

SAME = 0.25
"""Two witnesses give the same derivative where they differ by at most a quarter of what the gradient is off by."""


SMALL_JUMP = 0.5
"""One-sided slopes may differ by half of what the gradient is off by; at a kink it would be off by half of the jump."""

BENT = 0.1
"""One-sided slopes that differ by more than this share of the slope on both sides of a gradient show a kink."""


@dataclass(frozen=True)
class Measurement:
    """Centered differences at every entry of a gradient on trial, before anything is judged.

    Attributes:
        check: the gradient on trial.
        differences: by one stencil, at all N entries.
        results: with these differences; every outcome is MATCH so far.
        suspects: the entries that disagree.
        is_suited: whether the stencil is the user's or that of a ladder over entries of this very tensor.
    """

    check: EntryCheck
    differences: Differences
    results: EntryResults
    suspects: Indices
    is_suited: bool

    def contradicted(self, reference: Floats | None) -> Indices:
        """The suspects that the differences contradict beyond doubt, unless J has pieces between the steps.

        The gradient is off by more than 3 error bars. f moves, so that it does not stand on a plateau. It has no kink
        that could explain the gradient: its one-sided slopes differ by no more than a quarter of what it would take for
        the gradient to be one of them. And a second witness says what the differences say.

        Args:
            reference: shape (N,), another gradient of J, which autograd's formulas give; None for no second witness.
        """
        which = self.suspects[np.isfinite(self.check.analytic[self.suspects])]
        numeric, error_bar = self.results.numeric[which], self.results.error_bar[which]
        with np.errstate(all="ignore"):
            off = np.abs(self.check.analytic[which] - numeric)
            beyond = np.isfinite(off) & ~self.check.agrees(which, numeric, error_bar, margin=CONTRADICTION)
            beyond &= np.abs(numeric) > CONTRADICTION * error_bar
            jump = self.check.jump(self.differences.at(which))
            beyond &= np.abs(jump) + 2 * error_bar <= off * SMALL_JUMP
            beyond &= could_not_hide(self.check, which, off, self.differences.step[which])
            if reference is not None:
                beyond &= np.abs(reference[which] - numeric) <= np.minimum(SAME * off, self._rounded(which, reference))
        return which[beyond]

    def _rounded(self, which: Indices, reference: Floats) -> Floats:
        """How far two right derivatives may lie apart."""
        numeric = self.results.numeric[which]
        relative = self.check.tolerance * (np.abs(numeric) + np.abs(reference[which]))
        return np.asarray(relative + CONTRADICTION * self.results.error_bar[which] + self.check.rounding[which])


def _bent(check: EntryCheck, found: Differences) -> Flags:
    """Entries whose one-sided slopes differ at the first step; J(θ) is the eager engine's, to spare an evaluation."""
    with np.errstate(all="ignore"):
        jump = np.abs(2 * (found.middle - check.noise.at_zero) / found.step)
        return np.asarray(jump > BENT * (np.abs(found.central) + np.abs(check.analytic)) + 2 * SIGMAS * found.roundoff)


def measured(check: EntryCheck, previous_stencil: Stencil | None) -> Measurement:
    """Differences the functions of every entry, by a stencil that suits the noise.

    Args:
        check: the gradient on trial and the functions it should be the gradient of.
        previous_stencil: the stencil that suited the tensor before; tried where the default step drowns in noise.
    """
    return through_one(check, *first_stencil(check, previous_stencil))


def better_measured(measurement: Measurement) -> Measurement:
    """The same by a better stencil, where entries disagree and a ladder finds one; else the measurement itself."""
    if not len(measurement.suspects) or measurement.is_suited:
        return measurement
    stencil = better_stencil(measurement.check, measurement.results, measurement.suspects)
    return measurement if stencil is None else through_one(measurement.check, stencil)


def through_one(
    check: EntryCheck, stencil: Stencil, differenced: Differenced = NONE_YET, is_suited: bool = True
) -> Measurement:
    """Differences the functions of every entry that is not differenced yet by this stencil."""
    everything = np.arange(len(check.analytic), dtype=np.int64)
    found = differenced.differences
    if len(differenced.which) < len(everything):
        rest = np.setdiff1d(everything, differenced.which, assume_unique=True)
        order = np.argsort(np.concatenate([differenced.which, rest]))
        pairs = zip(found, check.through(stencil, rest), strict=True)
        found = Differences(*(np.concatenate(pair)[order] for pair in pairs))
    nothing = np.full(len(everything), np.nan)
    outcome = np.zeros(len(everything), np.int8)
    results = EntryResults(
        found.central.copy(), found.roundoff.copy(), outcome, nothing, nothing.copy(), stencil, _bent(check, found)
    )
    suspects = np.flatnonzero(~check.agrees(everything, found.central, found.roundoff))
    return Measurement(check, found, results, suspects, is_suited)
