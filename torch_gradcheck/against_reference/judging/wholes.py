"""A tensor judged as a whole and part by part: mistakes that are too small to show in any single entry.

One percent in bfloat16 is a unit in the last place. Over many entries it is far more than rounding: roundings cancel in
a sum, and a mistake does not. So the error e is summed over all of the tensor, each slice, and each block of slices:
its square, and its product with what a mistake may be proportional to: the right tensor itself, a constant, the inputs
and the outputs of the same shape. The same sums over the runs of the reference say what rounding does to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torch_gradcheck.against_reference.judging.bars import Bars
from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.parts import ENTRIES_NEEDED, Cut, Part, cuts_of
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.reporting.words import times as multiple

MARGIN_OF_SQUARES, MARGIN_OF_SQUARES_OF_PARTS = 1.2, 3.0
"""The bar of a root mean square, in multiples of that of the runs; twice as large for a single entry. That of the runs
is 2.2 times what rounding does: each moves a result by more than its rounding, and then rounds it. Of the tensors that
`bars.MARGIN` speaks of 99 % were at 0.42 of the bar at most, and of their parts at 0.2."""

SIGMAS, SIGMAS_OF_PARTS = 2.5, 4.0
"""The bar of a sum over the whole, and over parts, of which there are thousands, in standard deviations of the runs, of
which each is worth 2.2 of rounding; twice as large for a single entry. Of the same tensors 99 % were at 0.3 at most."""

SIGMAS_OF_RUNS = 4.0
"""The same, of the standard deviation that the sum itself has among 13 runs, which is known less well."""

COMMON, COMMON_OF_PARTS = 0.15, 1.0
"""The share of a right kernel's error that may be proportional to something: it rounds numbers that many entries have
in common, such as a row's sum, where the reference rounds others."""

ALIKE = 1.5
"""How many times as far as the runs on average a candidate may be off: what rounding does to all of them alike."""

ITSELF, CONSTANT = "itself", "a constant"


@dataclass(frozen=True)
class Finding:
    """What a sum over one part of a tensor shows.

    Attributes:
        part: which part.
        along: what the error is proportional to; "" of its root mean square.
        size: the root mean square, or how many times what it is proportional to the error holds.
        bar: the largest that rounding explains.
        factor: the factor that the part would have to be multiplied by for this to show.
    """

    part: Part
    along: str
    size: float
    bar: float
    factor: float

    @property
    def times(self) -> float:
        """The size in multiples of the bar."""
        return abs(self.size) / self.bar if self.bar else 0.0

    def __str__(self) -> str:
        subject = "it" if not self.part.axes else str(self.part)
        times = f"{multiple(self.times)} times what rounding explains"
        if not self.along:
            whose = "its" if not self.part.axes else f"in {self.part} the"
            return f"{whose} root mean square error is {self.size:.2g}, {times} ({self.bar:.2g})"
        verb = "are" if self.part.stop - self.part.start > 1 and self.part.axes else "is"
        if self.along == ITSELF:
            return f"{subject} {verb} {1 + self.size:.5g} times the right one as a whole, {times} ({self.bar:.2g})"
        if self.along == CONSTANT:
            return f"{subject} {verb} off by {self.size:.2g} on average, {times} ({self.bar:.2g})"
        return f"{subject} {verb} off by {self.size:.2g} times {self.along}, {times} ({self.bar:.2g})"


def findings_of(each: Compared, bars: Bars, tolerance: float) -> list[Finding]:
    """The furthest beyond its bar of each kind of sum, over all of the tensor first, then over its parts.

    Args:
        each: one tensor.
        bars: of its entries.
        tolerance: the relative error that passes.
    """
    with np.errstate(all="ignore"):
        error = each.candidate[0] - each.right
    known = ~bars.overflowed & np.isfinite(error)
    sums = _Sums(np.where(known, error, 0.0), np.where(known, each.right, 0.0), bars, known, tolerance)
    directions = {ITSELF: each.right, CONSTANT: np.ones(len(error)), **each.beside}
    cuts = [cut for cut in cuts_of(each.shape) if cut.largest >= ENTRIES_NEEDED or not cut.axes]
    found = [sums.of_squares(cut) for cut in cuts]
    for name, direction in directions.items():
        weighted = sums.along(np.where(known, direction, 0.0))
        found += [weighted.of(cut, name) for cut in cuts]
    return found


@dataclass(frozen=True)
class _Sums:
    """Sums of the error of a tensor; arrays of shape (coordinates,), 0 where nothing is known of it."""

    error: Floats
    right: Floats
    bars: Bars
    known: Flags
    tolerance: float

    def of_squares(self, cut: Cut) -> Finding:
        """The root mean square of the error."""
        variance, few = cut.sums(self.bars.variance * self.known), _few(cut, self.bars.variance * self.known)
        noise = np.sqrt(np.maximum(variance, cut.sums(np.square(self.bars.errors)).max(axis=0, initial=0.0)))
        right = np.sqrt(cut.sums(np.square(self.right)))
        margin = MARGIN_OF_SQUARES_OF_PARTS if cut.axes else MARGIN_OF_SQUARES
        bar = margin * few * noise * self.bars.order
        bar += 2 * self.tolerance * right
        counts = np.sqrt(np.maximum(cut.sums(self.known.astype(np.float64)), 1))
        return _furthest(cut, "", np.sqrt(cut.sums(np.square(self.error))) / counts, bar / counts, right / counts)

    def along(self, direction: Floats) -> _Along:
        """The sums of products with a direction."""
        return _Along(self, direction, self.error * direction, self.bars.errors * direction)


@dataclass(frozen=True)
class _Along:
    """Sums of the products of errors with a direction; the runs' products have shape (runs, coordinates)."""

    sums: _Sums
    direction: Floats
    error: Floats
    runs: Floats

    def of(self, cut: Cut, name: str) -> Finding:
        """How many times the direction is contained in the error."""
        square = cut.sums(np.square(self.direction))
        right, size = self.sums.right * self.direction, np.abs(self.sums.right * self.direction)
        variance = self.sums.bars.variance * self.sums.known
        common = (COMMON_OF_PARTS if cut.axes else COMMON) * np.sqrt(cut.sums(variance) * square)
        weighted = variance * np.square(self.direction)
        independent = np.sqrt(cut.sums(weighted)) * _few(cut, weighted)
        factor = self.sums.bars.factor * np.abs(cut.sums(right))
        rounding = np.sqrt(np.square(factor) + np.square(common) + self._square_of_noise(cut, independent))
        bar = self.sums.bars.order * rounding + 2 * self.sums.tolerance * cut.sums(size)
        there = np.where(square > 0, square, 1.0)
        return _furthest(cut, name, cut.sums(self.error) / there, bar / there, np.abs(cut.sums(right)) / there)

    def _square_of_noise(self, cut: Cut, independent: Floats) -> Floats:
        """How far rounding moves the sums: alike in all runs, and at random.

        Args:
            cut: into the parts that are summed over.
            independent: standard deviation of a sum, were the entries moved independently of each other; more of few.
        """
        runs = cut.sums(self.runs)
        mean, deviation = runs.mean(axis=0), runs.std(axis=0)
        relative = np.divide(deviation, independent, out=np.zeros_like(deviation), where=independent > 0)
        more = max(1.0, float(np.sqrt(np.mean(np.square(relative))))) if relative.size else 1.0
        sigmas = SIGMAS_OF_PARTS if cut.axes else SIGMAS
        noise = np.maximum(sigmas * more * independent, SIGMAS_OF_RUNS * deviation)
        return np.asarray(np.square(noise) + np.square(ALIKE * mean))


def _few(cut: Cut, variance: Floats) -> Floats:
    """1 + 1/√n of a sum over n entries that are moved alike: of a few by chance none may be moved far in the runs."""
    whole, squares = cut.sums(variance), cut.sums(np.square(variance))
    alike = np.divide(np.square(whole), squares, out=np.ones_like(squares), where=squares > 0)
    return np.asarray(1 + 1 / np.sqrt(np.maximum(alike, 1)))


def _furthest(cut: Cut, along: str, size: Floats, bar: Floats, right: Floats) -> Finding:
    """The part that is furthest beyond its bar, of those with enough entries."""
    judged = (cut.counts >= ENTRIES_NEEDED) | (not cut.axes)
    with np.errstate(all="ignore"):
        times = np.where(judged & (bar > 0), np.abs(size) / bar, 0.0)
        factors = np.where(judged & (right > 0), bar / right, np.inf)
    worst = int(np.argmax(times))
    return Finding(cut.part(worst), along, float(size[worst]), float(bar[worst]), float(np.min(factors)))
