"""A tensor judged as a whole and part by part: mistakes that are too small to show in any single entry.

One percent in bfloat16 is a unit in the last place. Over many entries it is far more than rounding: roundings cancel in
a sum, and a mistake does not. So the error e is summed over all of the tensor, each slice, and each block of slices:
its square, and its product with what a mistake may be proportional to: the right tensor itself, a constant, the inputs
and the outputs of the same shape. The same sums over the runs of the reference say what rounding does to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torch_gradcheck.against_reference.judging.bars import Bars
from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.parts import ENTRIES_NEEDED, Cut, Part, cuts_of
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.reporting.words import times as multiple

MARGIN_OF_SQUARES, MARGIN_OF_SQUARES_OF_PARTS = 1.2, 3.0
"""The bar of a root mean square, in multiples of that of the runs; twice as large for a single entry. That of the runs
is 2.2 times what rounding does: each moves a result by more than its rounding, and then rounds it. Of the tensors that
`bars.MARGIN` speaks of 99 % were at 0.42 of the bar at most, and of their parts at 0.2.

The run without noise would say how much rounding does without being too large, yet by luck: of right kernels in
bfloat16 some were 2.4 times as far off as that over 6,216 entries (an activation in steps, where torch has one kernel),
in float32 4.0 times over 627. A sum in bfloat16 over 50 terms is 3.5 times as far off. So it makes no bar."""

SIGMAS, SIGMAS_OF_PARTS = 2.5, 4.0
"""The bar of a sum over the whole, and over parts, of which there are thousands, in standard deviations of the runs, of
which each is worth 2.2 of rounding; twice as large for a single entry. Of the same tensors 99 % were at 0.3 at most. Of
attention and softmax with every result rounded to 16 bits rows that see few keys were furthest, at 0.62 (288 tensors).
"""

SIGMAS_OF_RUNS, SIGMAS_OF_RUNS_OF_PARTS = 3.5, 4.0
"""The same, of the standard deviation that the sum itself has among 13 runs, which is known less well."""

COMMON, COMMON_OF_PARTS = 0.15, 1.0
"""The share of a right kernel's error that may be proportional to something: it rounds numbers that many entries have
in common, such as a row's sum, where the reference rounds others."""

ALIKE = 1.5
"""How many times as far as the runs on average a candidate may be off: what rounding does to all of them alike."""

NEARLY_SURE = 1.2
"""By so many machine epsilons a product may be rounded against the factor: four standard deviations of a rounding."""

TOGETHER = 2**18
"""So many numbers are multiplied and summed at once: runs of a small tensor all together, of a large one after another,
which takes no more memory than the tensor itself."""

NEGLIGIBLE = 1e-60
"""The share of a direction's largest entry below which another counts as 0. No dtype shows an error proportional to it
beside the others, and squares of such numbers underflow: of the gradient at a saturated softmax a row may be 1e-170."""

SHOWN_IN_DIGITS = 1e-3
"""What a factor differs from 1 by at least, to be seen in five digits."""

ITSELF, CONSTANT = "itself", "a constant"


@dataclass(frozen=True)
class Finding:
    """What a sum over one part of a tensor shows.

    Attributes:
        part: which part.
        along: what the error is proportional to; "" of its root mean square.
        size: the root mean square, or how many times what it is proportional to the error holds.
        bar: the largest that rounding explains.
        factor: how far from 1 a factor on the part would have to be for this to show, with near certainty.
        share: the bar, relative to the same of the right tensor; the least of all parts, as the factor is.
    """

    part: Part
    along: str
    size: float
    bar: float
    factor: float
    share: float

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
            return f"{subject} {verb} {_factor(self.size)} times the right one as a whole, {times} ({self.bar:.2g})"
        if self.along == CONSTANT:
            return f"{subject} {verb} off by {self.size:.2g} on average, {times} ({self.bar:.2g})"
        return f"{subject} {verb} off by {self.size:.2g} times {self.along}, {times} ({self.bar:.2g})"


def _factor(more: float) -> str:
    """1 + `more` in words: in five digits, and as a sum where these would be those of 1."""
    if abs(more) >= SHOWN_IN_DIGITS:
        return f"{1 + more:.5g}"
    return f"1 {'-' if more < 0 else '+'} {abs(more):.2g}"


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
    sums = _Sums(np.where(known, error, 0.0), np.where(known, each.right, 0.0), bars, known, tolerance, each.epsilon)
    directions = {ITSELF: each.right, CONSTANT: np.ones(len(error)), **each.beside}
    along = {name: _in_range(np.where(known, direction, 0.0)) for name, direction in directions.items()}
    cuts = [cut for cut in cuts_of(each.shape) if cut.largest >= ENTRIES_NEEDED or not cut.axes]
    squares, *products = _of_runs(bars, [None, *along.values()], cuts)
    found = [sums.of_squares(cut, runs) for cut, runs in zip(cuts, squares, strict=True)]
    for (name, direction), of_cuts in zip(along.items(), products, strict=True):
        weighted = _Along(sums, direction)
        found += [weighted.of(cut, runs, name) for cut, runs in zip(cuts, of_cuts, strict=True)]
    return found


def _in_range(direction: Floats) -> Floats:
    """The direction, 0 where it is `NEGLIGIBLE`."""
    size = np.abs(direction)
    return np.where(size > NEGLIGIBLE * np.max(size, initial=0.0), direction, 0.0)


def _of_runs(bars: Bars, directions: Sequence[Floats | None], cuts: Sequence[Cut]) -> list[list[Floats]]:
    """What the runs' errors sum up to, for each direction and each cut of shape (runs, parts).

    Args:
        bars: have the runs.
        directions: the errors are multiplied by; None: they are squared.
        cuts: into the parts that are summed over.
    """
    found: list[list[list[Floats]]] = [[[] for _ in cuts] for _ in directions]
    step = max(1, TOGETHER // max(len(bars.entry), 1))
    for start in range(0, len(bars.moves), step):
        errors = bars.errors(start, start + step)
        for direction, of_cuts in zip(directions, found, strict=True):
            weighted = np.square(errors) if direction is None else errors * direction
            for cut, sums in zip(cuts, of_cuts, strict=True):
                sums.append(cut.sums(weighted))
    return [[np.concatenate(sums) for sums in of_cuts] for of_cuts in found]


@dataclass(frozen=True)
class _Sums:
    """Sums of the error of a tensor; arrays of shape (coordinates,), 0 where nothing is known of it."""

    error: Floats
    right: Floats
    bars: Bars
    known: Flags
    tolerance: float
    epsilon: float

    def of_squares(self, cut: Cut, runs: Floats) -> Finding:
        """The root mean square of the error; `runs` are the sums of squares in the runs, shape (runs, parts)."""
        variance, few = cut.sums(self.bars.variance * self.known), _few(cut, self.bars.variance * self.known)
        noise = np.sqrt(np.maximum(variance, runs.max(axis=0, initial=0.0)))
        right = np.sqrt(cut.sums(np.square(self.right)))
        margin = MARGIN_OF_SQUARES_OF_PARTS if cut.axes else MARGIN_OF_SQUARES
        bar = margin * few * noise * self.bars.order
        bar += 2 * self.tolerance * right
        counts = np.sqrt(np.maximum(cut.sums(self.known.astype(np.float64)), 1))
        size, chance = np.sqrt(cut.sums(np.square(self.error))), NEARLY_SURE * self.epsilon * right / counts
        return _furthest(cut, "", size / counts, bar / counts, right / counts, chance / counts)


@dataclass(frozen=True)
class _Along:
    """Sums of the products of errors with a direction."""

    sums: _Sums
    direction: Floats

    @cached_property
    def _error(self) -> Floats:
        return self.sums.error * self.direction

    @cached_property
    def _right(self) -> Floats:
        return self.sums.right * self.direction

    @cached_property
    def _variance(self) -> Floats:
        return self.sums.bars.variance * self.sums.known

    @cached_property
    def _square(self) -> Floats:
        return np.asarray(np.square(self.direction))

    def of(self, cut: Cut, runs: Floats, name: str) -> Finding:
        """How many times the direction is contained in the error.

        Args:
            cut: into parts.
            runs: the same sums of the runs, shape (runs, parts).
            name: of the direction.
        """
        square, right, size = cut.sums(self._square), np.abs(cut.sums(self._right)), cut.sums(np.abs(self._right))
        common = (COMMON_OF_PARTS if cut.axes else COMMON) * np.sqrt(cut.sums(self._variance) * square)
        weighted = self._variance * self._square
        independent = np.sqrt(cut.sums(weighted)) * _few(cut, weighted)
        noise = _square_of_noise(cut, runs, independent)
        rounding = np.sqrt(np.square(self.sums.bars.factor * right) + np.square(common) + noise)
        bar = self.sums.bars.order * (rounding + self.sums.bars.left * cut.sums(np.abs(self.direction)))
        bar += 2 * self.sums.tolerance * size
        chance = NEARLY_SURE * self.sums.epsilon * np.sqrt(cut.sums(np.square(self._right)))
        there = np.where(square > 0, square, 1.0)
        return _furthest(cut, name, cut.sums(self._error) / there, bar / there, right / there, chance / there)


def _square_of_noise(cut: Cut, runs: Floats, independent: Floats) -> Floats:
    """How far rounding moves the sums: alike in all runs, and at random.

    Args:
        cut: into the parts that are summed over.
        runs: the sums of the runs, shape (runs, parts).
        independent: standard deviation of a sum, were the entries moved independently of each other; more of few.
    """
    mean, deviation = runs.mean(axis=0), runs.std(axis=0)
    relative = np.divide(deviation, independent, out=np.zeros_like(deviation), where=independent > 0)
    more = max(1.0, float(np.sqrt(np.mean(np.square(relative))))) if relative.size else 1.0
    sigmas, of_runs = (SIGMAS_OF_PARTS, SIGMAS_OF_RUNS_OF_PARTS) if cut.axes else (SIGMAS, SIGMAS_OF_RUNS)
    noise = np.maximum(sigmas * more * independent, of_runs * deviation)
    return np.asarray(np.square(noise) + np.square(ALIKE * mean))


def _few(cut: Cut, variance: Floats) -> Floats:
    """1 + 1/√n of a sum over n entries that are moved alike: of a few by chance none may be moved far in the runs."""
    whole, squares = cut.sums(variance), cut.sums(np.square(variance))
    alike = np.divide(np.square(whole), squares, out=np.ones_like(squares), where=squares > 0)
    return np.asarray(1 + 1 / np.sqrt(np.maximum(alike, 1)))


def _furthest(cut: Cut, along: str, size: Floats, bar: Floats, right: Floats, chance: Floats) -> Finding:
    """The part that is furthest beyond its bar, of those with enough entries.

    Args:
        cut: into parts.
        along: see `Finding`.
        size: of each part, see `Finding`.
        bar: of each part.
        right: the same of the right tensor.
        chance: how far roundings of a tensor multiplied by a factor may make up for it.
    """
    judged = (cut.counts >= ENTRIES_NEEDED) | (not cut.axes)
    with np.errstate(all="ignore"):
        times = np.where(judged & (bar > 0), np.abs(size) / bar, 0.0)
        made_up_for = np.minimum(np.abs(size), bar) + chance
        shares, factors = (np.where(judged & (right > 0), each / right, np.inf) for each in (bar, bar + made_up_for))
    worst = int(np.argmax(times))
    least, share = float(np.min(factors)), float(np.min(shares))
    return Finding(cut.part(worst), along, float(size[worst]), float(bar[worst]), least, share)
