"""Judges one tensor of a candidate: entry by entry, and as a whole, where a small mistake shows in no single entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torch_gradcheck.against_reference.bars import Bars, bars_of, root_mean_square, slope_of
from torch_gradcheck.against_reference.compared import Compared
from torch_gradcheck.arrays import Floats
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
        trial: what was found, entry by entry.
        as_a_whole: why the tensor as a whole is wrong, where it is though no single entry is beyond its bar; else "".
        rounding_ratio: its root mean square error divided by that of the reference in the same dtype.
    """

    compared: Compared
    bars: Bars
    trial: ParameterTrial
    as_a_whole: str
    rounding_ratio: float

    @property
    def is_wrong(self) -> bool:
        """Whether it is, in any way."""
        return bool(np.any(self.trial.results.outcome == Outcome.MISMATCH))


def judged(each: Compared, tolerance: float) -> Judged:
    """The verdict on one tensor; `tolerance` is the relative error that passes whatever rounding may do."""
    bars, given = bars_of(each), each.candidate[0]
    with np.errstate(all="ignore"):
        off = np.abs(given - each.right)
        wrong = ~(off <= bars.entry + tolerance * (np.abs(given) + np.abs(each.right)))
    whole = "" if wrong.any() else _as_a_whole(given - each.right, each.right, bars, tolerance)
    if whole:
        wrong = off > 0
    outcome = np.where(wrong, Outcome.MISMATCH, Outcome.MATCH).astype(np.int8)
    nothing = np.full(len(given), np.nan)
    results = EntryResults(each.right, bars.entry, outcome, nothing, nothing, NO_STENCIL)
    trial = ParameterTrial(np.arange(len(given), dtype=np.int64), given, each.reached, results, 0, 0.0)
    return Judged(each, bars, trial, whole, _ratio(each))


def _as_a_whole(error: Floats, right: Floats, bars: Bars, tolerance: float) -> str:
    rms, slope = root_mean_square(error), slope_of(error, right)
    if rms > bars.rms + tolerance * root_mean_square(right):
        return f"its root mean square error is {rms:.2g}, and rounding explains {bars.rms:.2g}"
    if abs(slope) > bars.slope + tolerance:
        return f"it is {1 + slope:.4g} times the right one as a whole, and rounding explains {bars.slope:.2g}"
    return ""


def _ratio(each: Compared) -> float:
    own = root_mean_square(each.candidate[0] - each.right)
    loses = root_mean_square(each.rounded[0] - each.right)
    return own / loses if loses else float("nan")


def excess_of(each: Judged) -> float:
    """By how many times its error bar a tensor is off: its worst entry, or all of it; infinite where it is NaN."""
    error = each.compared.candidate[0] - each.compared.right
    with np.errstate(all="ignore"):
        entries = np.nan_to_num(np.abs(error) / each.bars.entry, nan=0.0)
        whole = [root_mean_square(error) / each.bars.rms, abs(slope_of(error, each.compared.right)) / each.bars.slope]
    return float(np.max([*whole, np.max(entries, initial=0.0)])) if np.isfinite(error).all() else np.inf
