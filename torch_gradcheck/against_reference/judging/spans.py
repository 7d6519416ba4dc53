"""Between which numbers a right tensor may be at kinks, and the verdict on a candidate by the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome

SMOOTH = 1e-6
"""A right gradient that moves by less, relative to its largest entry, has no kink at the inputs."""

UNSEEN = 2.0
"""Where several kinks meet, what a gradient may be that takes one slope of each is this many times further out on
either side than a few points beside the inputs show."""


@dataclass(frozen=True)
class Span:
    """Between which numbers a right tensor may be: arrays of shape (coordinates,).

    Attributes:
        judged: the tensor on trial, beside the one that the reference takes.
        low, high: the least and largest of what the reference gives, at the inputs and beside them.
        beside: the same of what it gives beside them; None before it was run there.
        several: entries at which several kinks meet: with one alone, every two points on both sides of the inputs show
            the same two numbers, and the one at the inputs is between them.
        jointly: entries that are within their span, and contradict the reference together with others.
    """

    judged: Judged
    low: Floats
    high: Floats
    beside: tuple[Floats, Floats] | None
    several: Flags
    jointly: Flags

    @classmethod
    def of(cls, each: Judged) -> Span:
        """The span of what the reference gives at the inputs alone."""
        right = each.compared.right
        nowhere = np.zeros(len(right), dtype=np.bool_)
        return cls(each, right, right, None, nowhere, nowhere)

    def taking_in(self, one: Floats, other: Floats, opposite: bool) -> Span:
        """The span with what the reference gives at two more points; `opposite`: on both sides of the inputs."""
        low, high = np.fmin(one, other), np.fmax(one, other)
        least, most = self.beside or (low, high)
        with np.errstate(all="ignore"):
            same = SMOOTH * np.max(np.maximum(np.abs(low), np.abs(high)), initial=0.0)
            third = [(each - least > same) & (most - each > same) for each in (one, other)]
            beyond = (most - least > same) & ((least - low > same) | (high - most > same))
            outside = (self.judged.compared.right - high > same) | (low - self.judged.compared.right > same)
            still = (np.fmax(most, high) - np.fmin(least, low) > same) & (high - low <= same)
        several = self.several | third[0] | third[1] | beyond | ((still | outside) & opposite)
        return replace(
            self,
            low=np.fmin(self.low, low),
            high=np.fmax(self.high, high),
            beside=(np.fmin(least, low), np.fmax(most, high)),
            several=several,
        )

    @property
    def nearest(self) -> Floats:
        """The number in the span that is nearest to the candidate's."""
        given, right = self.judged.compared.candidate[0], self.judged.compared.right
        return np.where(np.isfinite(given), np.clip(given, self.low, self.high), right)

    @property
    def off(self) -> Floats:
        """How far the candidate is from the span."""
        with np.errstate(all="ignore"):
            return np.nan_to_num(self.judged.compared.candidate[0] - self.nearest)

    @property
    def is_open(self) -> Flags:
        """Entries where several kinks meet, and the candidate may have taken a slope of each that was not seen.

        How far that may be is what kinks do to the tensor: at this very entry some may have cancelled.
        """
        with np.errstate(all="ignore"):
            width = np.max(self.high - self.low, initial=0.0)
            return np.asarray(self.several & (np.abs(self.off) <= UNSEEN * width))

    @property
    def is_beyond(self) -> Flags:
        """Entries that are further from the span than rounding explains."""
        return np.asarray(np.abs(self.off) > self.judged.bars.entry)

    def is_left(self, found: Judged) -> bool:
        """Whether it does not explain the tensor, which was judged by it: that is wrong, or undecided."""
        return found.is_wrong or (self.judged.is_wrong and bool(np.any(self.is_open & self.is_beyond)))

    @property
    def differs(self) -> Flags:
        """Entries that are further from what the reference takes than rounding explains."""
        with np.errstate(all="ignore"):
            each = self.judged.compared
            return np.asarray(np.abs(each.candidate[0] - each.right) > self.judged.bars.entry)

    @property
    def has_kinks(self) -> bool:
        """Whether a right tensor is another one beside the inputs."""
        with np.errstate(all="ignore"):
            size = np.max(np.maximum(np.abs(self.low), np.abs(self.high)), initial=0.0)
            return bool(np.any(self.high - self.low > SMOOTH * size))


def anew(span: Span, tolerance: float) -> Judged:
    """The verdict by the nearest number of the span.

    Entries that it makes right are kinks, those that are open undecided.
    """
    if not (span.judged.is_wrong and span.has_kinks):
        return span.judged
    each, nearest = span.judged.compared, span.nearest
    right = np.where(span.is_open, each.candidate[0], nearest)
    right = np.where(span.jointly, each.right, right)
    moved = right - each.right
    found = judged(replace(each, right=right, rounded=[run + moved for run in each.rounded]), tolerance)
    results = found.trial.results
    with np.errstate(all="ignore"):
        at_kinks = (np.abs(moved) > results.error_bar) & (results.outcome != Outcome.MISMATCH)
        is_open = (np.abs(right - nearest) > results.error_bar) & ~span.jointly
    outcome = np.where(at_kinks, Outcome.KINK, results.outcome)
    results = replace(
        results,
        outcome=np.where(is_open, Outcome.UNDECIDED, outcome).astype(np.int8),
        left=np.where(at_kinks, span.low, results.left),
        right=np.where(at_kinks, span.high, results.right),
    )
    jointly = int(np.sum(span.jointly & (results.outcome == Outcome.MISMATCH)))
    trial = replace(found.trial, results=results, jointly=jointly)
    return replace(found, trial=trial) if found.is_wrong or not is_open.any() else _left_open(found, results)


def left_open(each: Judged) -> Judged:
    """The verdict with its wrong entries undecided."""
    results = each.trial.results
    outcome = np.where(results.outcome == Outcome.MISMATCH, Outcome.UNDECIDED, results.outcome).astype(np.int8)
    return _left_open(each, replace(results, outcome=outcome))


class _LeftOpen(Judged):
    """A tensor at more ties than were tried."""

    @property
    def why_unproven(self) -> str:
        """See `Judged`."""
        left = int(np.sum(self.trial.results.outcome == Outcome.UNDECIDED))
        return (
            f"at {left} of {len(self.compared.right)} entries numbers tie with more others than were tried: whether "
            "the gradient is one of those that are right there is not known"
        )


def _left_open(each: Judged, results: EntryResults) -> Judged:
    trial = replace(each.trial, results=results)
    return _LeftOpen(
        each.compared, each.bars, trial, each.findings, each.worst_entry, each.rounding_ratio, each.tolerance
    )
