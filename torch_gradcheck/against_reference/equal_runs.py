"""Equal runs of a candidate that differ: by rounding, which widens the error bars, or by more than that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.diagnosis.unrepeatable import adds_up, factor_of
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.objective.objective import ROUNDOFF_BETWEEN_CALLS
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.facts import ParameterReport, Role
from torch_gradcheck.verdicts.rows import made_undecided

TOGETHER = 3.0
"""The root mean square of a difference between equal runs may be 3 times what the noisy runs of the reference show."""


@dataclass(frozen=True)
class Apart:
    """One tensor in which equal runs of the candidate lie apart.

    Attributes:
        entry: the tensor.
        runs: shape (runs, coordinates), what each run computed.
        alike: shape (runs, runs), which runs agree up to rounding.
        spread: the largest difference relative to the largest entry.
        allowed: up to where rounding in the candidate's dtype may explain a spread.
    """

    entry: ThetaEntry
    runs: Floats
    alike: Flags
    spread: float
    allowed: float

    @property
    def is_beyond_rounding(self) -> bool:
        """Whether two of the runs differ by more than rounding does."""
        return not self.alike.all()

    @property
    def pattern(self) -> str:
        """A sentence on which of the runs are alike."""
        others, count = self.alike[0, 1:], len(self.runs)
        second, third = [self._factor(run) for run in (self.runs[1], self.runs[-1 if count < 3 else 2])]
        if not others.any() and self.alike[1:, 1:].all():
            times = "" if second is None else f": what it gives is {1 / second:.3g} times theirs"
            return f"The first run differs from the {count - 1} that follow{times}"
        if not others.any() and second is not None and third is not None:
            why = ": something adds up" if adds_up(second, third) else ""
            return f"The second is {second:.3g} times the first, the third {third:.3g} times{why}"
        most = int(np.max(np.sum(self.alike, axis=1)))
        return f"Of {count} runs, {most if most > 1 else 'no two'} are alike"

    def _factor(self, run: Floats) -> float | None:
        """The number that a run is the first one times; None where it is none, up to rounding, or 0."""
        return factor_of(run, self.runs[0], self.allowed) or None


def other_order(dtype: torch.dtype) -> float:
    """What the order of its sums may move a right tensor by, relative to its largest entry: 1e-4 in float32.

    Of 20,000 float32 numbers, added one after the other as atomics do, the sum moves by 1e-5. In a lower precision they
    are to be added in float32.
    """
    return ROUNDOFF_BETWEEN_CALLS * min(epsilon(dtype), epsilon(torch.float32))


def runs_apart(verdicts: Sequence[Judged], tolerance: float) -> list[Apart]:
    """The tensors in which equal runs of the candidate differ, by rounding or by more; the furthest apart first.

    Two runs may differ by the error bar of an entry, and in all by that of the tensor as a whole, since the bars hold
    what rounding in the dtype does to a right kernel; and by what another order of long sums does, see `other_order`.

    Args:
        verdicts: on every tensor that was compared.
        tolerance: the relative error that passes whatever rounding may do.
    """
    found = [_apart(each.compared, tolerance) for each in verdicts]
    return sorted([each for each in found if each is not None], key=lambda each: -each.spread)


def marked(rows: Sequence[ParameterReport], apart: Sequence[Apart]) -> list[ParameterReport]:
    """The rows, those undecided that have no one value: equal runs differ by more than rounding."""
    beyond = {each.entry.name: each for each in apart if each.is_beyond_rounding}
    return [made_undecided(row, _reason(beyond[row.name])) if row.name in beyond else row for row in rows]


def _reason(apart: Apart) -> str:
    return f"equal runs of the candidate differ {_by_how_much(apart)}"


def spread_of(apart: Sequence[Apart]) -> float:
    """The largest spread that is more than rounding; 0 where none is."""
    return max([each.spread for each in apart if each.is_beyond_rounding], default=0.0)


def difference_in_words(apart: Sequence[Apart]) -> str:
    """How equal runs differ by more than rounding; "" where they do not."""
    worst = told_of(apart)
    if worst is None:
        return ""
    return f"equal runs from the same random state differ {_by_how_much(worst)}. {worst.pattern}"


def notes_on(apart: Sequence[Apart], where: str) -> list[str]:
    """The note on runs that differ; none where all give the same bits.

    Args:
        apart: what differs.
        where: a sentence on where it starts; "" for none.
    """
    words = difference_in_words(apart)
    if words:
        return [". ".join(filter(None, [f"the candidate is not one function: {words}", where]))]
    if apart:
        worst = apart[0]
        return [
            f"equal runs of the candidate differ by {worst.spread:.0e} of {_what(worst.entry)}, as rounding: it is "
            "part of the error bars"
        ]
    return []


def told_of(apart: Sequence[Apart]) -> Apart | None:
    """The tensor by which runs are said to differ by more than rounding; None where they do not."""
    beyond = [each for each in apart if each.is_beyond_rounding]
    return _first_cause(beyond) if beyond else None


def _first_cause(beyond: Sequence[Apart]) -> Apart:
    """What is told of: an output, where one differs, since gradients follow from it."""
    return next((each for each in beyond if each.entry.role is Role.OUTPUT), beyond[0])


def _by_how_much(apart: Apart) -> str:
    what = _what(apart.entry)
    if np.isfinite(apart.spread):
        return f"by {apart.spread:.1e} of {what}, of which {apart.allowed:.0e} could be rounding"
    return f"in {what}: an entry is a finite number in one and not in another"


def _what(entry: ThetaEntry) -> str:
    return entry.name if entry.role is Role.OUTPUT else f"the gradient of {entry.name}"


def _apart(each: Compared, tolerance: float) -> Apart | None:
    runs = np.array(each.candidate)
    if len(runs) < 2 or all(np.array_equal(run, runs[0], equal_nan=True) for run in runs[1:]):
        return None
    bars = judged(replace(each, candidate=[each.candidate[0]]), tolerance).bars
    finite = np.abs(np.nan_to_num(runs, nan=0.0, posinf=0.0, neginf=0.0))
    order = other_order(each.entry.own_dtype) * float(np.max(finite))
    with np.errstate(all="ignore"):
        allowed = bars.entry + tolerance * np.max(finite, axis=0) + order
        rms = TOGETHER * float(np.sqrt(np.mean(bars.variance))) + tolerance * root_mean_square(each.right) + order
        alike = np.array([[_alike(_off(one, other), allowed, rms) for other in runs] for one in runs])
        off = max([float(np.max(_off(run, runs[0]))) for run in runs[1:]])
    size = float(np.max(finite)) or 1.0
    return Apart(each.entry, runs, alike, off / size, float(np.max(allowed)) / size)


def _alike(off: Floats, allowed: Floats, rms: float) -> bool:
    return bool(np.all(off <= allowed)) and root_mean_square(off) <= rms


def _off(one: Floats, other: Floats) -> Floats:
    """The distances entry by entry; infinite where only one is NaN, or they are infinite and not the same."""
    off = np.abs(one - other)
    off[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    return np.nan_to_num(off, nan=np.inf)
