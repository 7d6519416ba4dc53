"""Finds the wrong entries of a `.grad`: those beyond the error bars of rounding, or off as no rounding makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, by_number
from torch_gradcheck.training_step.error_bars import Bars, spread_by_entry
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

ENTRIES_NEEDED = 8
"""Entries needed to believe a relation between two gradients: 8 numbers are not proportional by accident."""

NO_ROUNDING = 1e-4
"""The relative difference of two gradients that no rounding of a common factor makes, such as the
factor of a clipped norm: 0.01 %."""

ROUNDINGS = 16.0
"""The largest difference between two runs of one step, in machine epsilons of the largest entry."""

BEYOND_NOISE = 4.0
"""Where most entries of `.grad` equal the rerun exactly, another entry is wrong if it is off by more than this many
times the spread of the noisy reruns."""


@dataclass(frozen=True)
class NoiseOfRerun:
    """How far rounding as noise moves the plain run of a step.

    Attributes:
        by_entry: each entry.
        of_factor: all entries together, in proportion: its share along the run itself.
    """

    by_entry: Floats
    of_factor: float

    @classmethod
    def of(cls, plain: Floats, noisy: Sequence[Floats], rows: int) -> NoiseOfRerun:
        """What is seen of it in runs with noise; for `rows` see `spread_by_entry`. Infinite where one is not finite."""
        with np.errstate(all="ignore"):
            shares = [abs(share_of(run - plain, plain)) for run in noisy]
        return cls(spread_by_entry(plain, noisy, rows), float(np.max(np.nan_to_num(shares, nan=np.inf), initial=0.0)))

    def times(self, factor: float) -> NoiseOfRerun:
        """The noise of a run that is scaled by this factor."""
        return NoiseOfRerun(self.by_entry * factor, self.of_factor)


@dataclass(frozen=True)
class Judged:
    """One parameter's `.grad` beside the right gradient.

    Attributes:
        tried: what was found, entry by entry; `answer.numeric` is what `.grad` should be (clipped, where the loop
            clips), `answer.error` its error bar with that of rounding.
        bars: what rounding may do.
        open: why entries are undecided, which a loss scale has spoilt or an autocast may explain; "" where none is.
    """

    trial: ParameterTrial
    bars: Bars
    open: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether an entry is."""
        return bool(np.any(self.trial.results.outcome == Outcome.MISMATCH))

    def undecided(self, found: Flags | bool, reason: str) -> Judged:
        """The same, with the wrong ones of these entries UNDECIDED, for this reason."""
        results = self.trial.results
        which = found & (results.outcome == Outcome.MISMATCH)
        if not which.any():
            return self
        outcome = np.where(which, Outcome.UNDECIDED, results.outcome).astype(np.int8)
        return replace(self, trial=replace(self.trial, results=replace(results, outcome=outcome)), open=reason)


def judge(trial: ParameterTrial, bars: Bars, tolerance: float) -> Judged:
    """Which entries are wrong: each by more than the bar of an entry, or all of them by more than that of the norm."""
    given, results = trial.analytic, trial.results
    finite = np.isfinite(given)
    error = by_number(partial(np.add, bars.entry), results.error_bar)
    with np.errstate(all="ignore"):
        size = tolerance * (np.abs(given) + np.abs(results.numeric))
        off = np.abs(given - results.numeric)
        wrong = ~finite | (off > size + error)
        known = results.outcome != Outcome.UNDECIDED
        together = float(np.linalg.norm((off - size - results.error_bar).clip(min=0)[known & finite])) > bars.norm
        if together and not wrong.any():
            wrong = off > bars.norm / np.sqrt(max(len(off), 1))
    outcome = np.where(results.outcome == Outcome.MISMATCH, Outcome.MATCH, results.outcome)
    outcome[(wrong & known) | ~finite] = Outcome.MISMATCH
    return Judged(replace(trial, results=replace(results, error_bar=error, outcome=outcome.astype(np.int8))), bars)


@np.errstate(all="ignore")  # infinite less infinite
def judge_by_rerun(
    judged: Judged, plain: Floats, noise: NoiseOfRerun, summing: Floats, theta: Floats, eps: float, tolerance: float
) -> Judged:
    """Judges by the step's plain run, where it shows a mistake that rounding would hide.

    A loop that computes its gradient just as the run does, and then spoils it, leaves traces that no rounding does,
    however coarse: `.grad` is off by a multiple of θ, or of itself, and by nothing else; or off in some entries and
    equal to the last digits in most. It may be off by a multiple of itself where rounding of a factor that all entries
    have in common, such as the residual of a nearly perfect fit, moves the runs with noise along it as far.

    Args:
        judged: what was found without.
        plain: the run, as the loop clips it.
        noise: what rounding as noise does to it.
        summing: how far the sum over ranks, which the run does not repeat, may have moved each entry.
        theta: what the parameter holds.
        eps: machine epsilon of `.grad`.
        tolerance: the relative error that passes.
    """
    given = judged.trial
    largest = float(np.max(np.abs(plain), initial=0.0))
    rounding = np.minimum(ROUNDINGS * eps * largest, np.maximum(2 * eps * np.abs(plain), NO_ROUNDING * largest))
    along_itself = _off_along(given.analytic, plain, plain, eps)
    if along_itself and abs(share_of(given.analytic - plain, plain)) <= BEYOND_NOISE * noise.of_factor:
        return judged
    if along_itself or _off_along(given.analytic, plain, theta, eps):
        error = rounding
    elif _equal_elsewhere(given.analytic, plain, eps):
        error = np.maximum(rounding, BEYOND_NOISE * noise.by_entry)
    else:
        return judged
    beside = replace(given, results=replace(given.results, numeric=plain, error_bar=error + summing))
    by_rerun = judge(beside, Bars(0.0, float("inf")), tolerance)
    return by_rerun if by_rerun.is_wrong else judged


def _equal_elsewhere(given: Floats, plain: Floats, eps: float) -> bool:
    """Whether most entries of two gradients are the same number."""
    informative = plain != 0
    same = np.abs(given - plain) <= 2 * eps * np.abs(plain)
    return bool(np.sum(informative) >= ENTRIES_NEEDED and np.mean(same[informative]) > 0.5)


def _off_along(given: Floats, plain: Floats, direction: Floats, eps: float) -> bool:
    """Whether two gradients differ, by more than a rounding of all of them, and along one direction only."""
    off, square = given - plain, float(np.dot(direction, direction))
    if len(off) < ENTRIES_NEEDED or not np.isfinite(square) or not square or not np.all(np.isfinite(off)):
        return False
    left = off - share_of(off, direction) * direction
    size = float(np.linalg.norm(off))
    differ = size > max(NO_ROUNDING, ROUNDINGS * eps) * float(np.linalg.norm(given))
    return differ and float(np.linalg.norm(left)) < 0.01 * size


def share_of(off: Floats, direction: Floats) -> float:
    """How many times a direction is contained in a difference; 0 for a direction of zeros."""
    square = float(np.dot(direction, direction))
    return float(np.dot(off, direction)) / square if square else 0.0
