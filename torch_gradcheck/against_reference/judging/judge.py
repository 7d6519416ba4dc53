"""Judges one tensor of a candidate: entry by entry, and as a whole, where a small mistake shows in no single entry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.against_reference.judging.bars import Bars, bars_of
from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.parts import Part
from torch_gradcheck.against_reference.judging.wholes import ITSELF, Finding, findings_of
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

NO_STENCIL = Stencil(float("nan"), 0)
"""Nothing is differenced."""


@dataclass(frozen=True)
class Judged:
    """One tensor of the candidate, judged.

    Attributes:
        compared: its numbers beside the right ones.
        bars: what rounding may do.
        trial: what was found, entry by entry; all entries of a part that is wrong as a whole are.
        findings: the sums over all of it and over its parts, each kind's furthest beyond its bar.
        worst_entry: the largest error of an entry, in multiples of its bar.
        rounding_ratio: its root mean square error divided by that of the reference in the same dtype.
        tolerance: the relative error that passes whatever rounding may do.
    """

    compared: Compared
    bars: Bars
    trial: ParameterTrial
    findings: Sequence[Finding]
    worst_entry: float
    rounding_ratio: float
    tolerance: float

    @property
    def is_wrong(self) -> bool:
        """Whether it is, in any way."""
        return bool(np.any(self.trial.results.outcome == Outcome.MISMATCH))

    @cached_property
    def worst(self) -> Finding:
        """The sum that is furthest beyond its bar; one along something says more than a root mean square."""
        along = [each for each in self.findings if each.along and each.times > 1]
        return max(along or self.findings, key=_times)

    @property
    def part(self) -> Part | None:
        """The part that is wrong as a whole, though no single entry is; None where there is none."""
        return self.worst.part if self.worst_entry <= 1 and self.worst.times > 1 else None

    @property
    def as_a_whole(self) -> str:
        """Why the tensor, or a part of it, is wrong as a whole, where it is though no entry is alone; else ""."""
        return str(self.worst) if self.part is not None else ""

    @property
    def rms(self) -> float:
        """The root mean square of its error, in multiples of its bar."""
        return next(each.times for each in self.findings if not each.along)

    @property
    def slope(self) -> float:
        """How far it is from the right tensor along that, in multiples of its bar."""
        return next(each.times for each in self.findings if each.along == ITSELF)

    @property
    def excess(self) -> float:
        """By how many times its error bar a tensor is off: its worst entry, or a sum over it; infinite where NaN."""
        return max(self.worst_entry, *[each.times for each in self.findings])

    @property
    def told(self) -> float:
        """By how many times its bar its row says that it is off: its worst entry or, where none is beyond, a sum."""
        return self.worst_entry if self.part is None else self.worst.times

    @property
    def detectable(self) -> float:
        """How far from 1 a factor on the whole tensor would have to be to show; infinite where none would.

        With near certainty: what the candidate is off by, within its bars, and another rounding may make up for it.
        """
        return float(min([each.factor for each in self.findings] + [self._factor_of_an_entry]))

    @property
    def unknown_share(self) -> float:
        """How much of its size rounding may move the tensor by, at the entry or sum that shows most; at 1 all of it."""
        with np.errstate(all="ignore"):
            entries = self.bars.entry / np.abs(self.compared.right)
        least = float(np.min(entries, where=np.isfinite(entries), initial=np.inf))
        return min([each.share for each in self.findings] + [least])

    @property
    def _factor_of_an_entry(self) -> float:
        """The same, of what single entries show; their tolerance is relative to both sides."""
        size, left = np.abs(self.compared.right), 1 - self.tolerance
        if left <= 0:
            return math.inf
        with np.errstate(all="ignore"):
            allowed = self.bars.entry + 2 * self.tolerance * size
            off = np.minimum(np.abs(self.compared.candidate[0] - self.compared.right), allowed)
            needed = (allowed + off) / (left * size) + self.compared.epsilon / 2
        return float(np.min(needed, where=np.isfinite(needed), initial=np.inf))

    @property
    def why_unproven(self) -> str:
        """Why some entries are undecided; "" where none is."""
        left = int(np.sum(self.trial.results.outcome == Outcome.UNDECIDED))
        if not left:
            return ""
        return (
            f"at {left} of {len(self.compared.right)} entries the reference itself is not finite in the candidate's "
            "precision: how far rounding moves them is not known"
        )


@np.errstate(all="ignore")
def judged(each: Compared, tolerance: float) -> Judged:
    """The verdict on one tensor; `tolerance` is the relative error that passes whatever rounding may do."""
    bars, given = bars_of(each), each.candidate[0]
    findings = findings_of(each, bars, tolerance)
    with np.errstate(all="ignore"):
        allowed = bars.entry + tolerance * (np.abs(given) + np.abs(each.right))
        times = np.nan_to_num(np.abs(given - each.right) / allowed, nan=np.inf)
    times[_is_the_same(each)] = 0.0
    outcome = _outcomes(each, bars, times)
    worst = float(np.max(times, where=(outcome == Outcome.MISMATCH) | (times <= 1), initial=0.0))
    nothing = np.full(len(given), np.nan)
    results = EntryResults(each.right, bars.entry, outcome, nothing, nothing, NO_STENCIL)
    trial = ParameterTrial(np.arange(len(given), dtype=np.int64), given, each.reached, results, 0, 0.0)
    found = Judged(each, bars, trial, findings, worst, _ratio(each), tolerance)
    if found.part is not None:
        outcome[found.part.inside(each.shape) & (times > 0)] = Outcome.MISMATCH
    return found


def _times(finding: Finding) -> float:
    return finding.times


def _outcomes(each: Compared, bars: Bars, times: Floats) -> NDArray[np.int8]:
    """The outcome of each entry that is `times` its bar off: what rounding overflows, and is finite, is undecided."""
    finite = np.isfinite(each.candidate[0]) & np.isfinite(each.right)
    unknown = bars.overflowed & finite | np.isnan(each.right)
    outcome = np.where(unknown, Outcome.UNDECIDED, Outcome.MISMATCH)
    return np.where(times <= 1, Outcome.MATCH, outcome).astype(np.int8)


def _is_the_same(each: Compared) -> Flags:
    """Which entries are the same infinity on both sides; a right number that the dtype cannot hold is none."""
    given = each.candidate[0]
    return np.asarray(np.isinf(given) & (given == each.right))


def _ratio(each: Compared) -> float:
    """NaN where the reference loses nothing in that dtype and the candidate does; 0 where neither does."""
    given, right, plain = each.candidate[0], each.right, each.rounded[0]
    finite = np.isfinite(given) & np.isfinite(right) & np.isfinite(plain)
    own = root_mean_square(given[finite] - right[finite])
    loses = root_mean_square(plain[finite] - right[finite])
    return own / loses if loses else (float("nan") if own else 0.0)
