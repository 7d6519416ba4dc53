"""Where a tensor is wrong: rows, columns, blocks of a tile's size, and the tail behind the last full block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.against_reference.kind.explanation import EXPLAINED, Explanation
from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.places import FEW, MOST_NAMED, MOST_SLICES, SINGLE_ENTRIES, slices
from torch_gradcheck.reporting.words import listed

SMALLEST_BLOCK = 4
"""Kernels work on blocks of powers of two; one of 2 says nothing."""

DENSE = 0.1
"""Slices are named by themselves where a tenth of their entries is seen to be wrong; else as what contains these."""


@dataclass(frozen=True)
class Place:
    """A part of a tensor outside of which it is right.

    Attributes:
        where: its entries.
        words: what it is called; of `the_rest` that is what the part that is right is called.
        scattered: whether it is in several pieces.
        the_rest: whether it is most of the tensor: all but one block.
    """

    where: Flags
    words: str
    scattered: bool = False
    the_rest: bool = False


def wrong_place(explanation: Explanation, evidence: Evidence) -> Place | None:
    """The part of a tensor that contains all of its mistake; None where that is most of it.

    Args:
        explanation: of the tensor.
        evidence: the same tensor, with its shape and the entries that are wrong.
    """
    for place in _candidates(explanation, evidence):
        if place is not None and explanation.is_right_outside(place.where):
            return place
    return None


def _candidates(explanation: Explanation, evidence: Evidence) -> Iterator[Place | None]:
    """Parts that may be all that is wrong, the smallest first."""
    number = int(np.sum(evidence.wrong))
    if not 0 < number < evidence.wrong.size:
        return
    if number <= SINGLE_ENTRIES:
        yield _entries(evidence)
    hits = _Hits.of(explanation, evidence)
    yield _slices(evidence, hits)
    yield _slices(evidence, hits.closed)
    yield from _all_but_a_block(evidence, hits)
    if number <= FEW * evidence.wrong.size:
        yield _entries(evidence)


def _entries(evidence: Evidence) -> Place:
    wrong = np.flatnonzero(evidence.wrong)
    places = [str([int(i) for i in np.unravel_index(k, evidence.shape)]) for k in wrong[: MOST_NAMED + 1]]
    more = [""] * (len(wrong) - len(places))
    return Place(evidence.wrong, f"{'entry' if len(wrong) == 1 else 'entries'} {listed([*places, *more], MOST_NAMED)}")


@dataclass(frozen=True)
class _Hits:
    """The slices along each axis that are wrong.

    Attributes:
        hit: those that are off as a whole, or have a wrong entry.
        sure: whether all of these are off as a whole, axis by axis.
    """

    hit: Sequence[Indices]
    sure: Sequence[bool]

    @classmethod
    def of(cls, explanation: Explanation, evidence: Evidence) -> _Hits:
        grid = evidence.wrong.reshape(evidence.shape)
        dimensions = range(grid.ndim)
        as_a_whole = [explanation.hit(grid.shape, axis) for axis in dimensions]
        seen = [grid.any(axis=tuple(other for other in dimensions if other != axis)) for axis in dimensions]
        both = list(zip(as_a_whole, seen, strict=True))
        return cls(
            [np.flatnonzero(one | other) for one, other in both], [bool(one[other].all()) for one, other in both]
        )

    @property
    def closed(self) -> _Hits:
        """The same without gaps, which rounding makes: from the first to the last along each axis."""
        return replace(self, hit=[np.arange(which[0], which[-1] + 1) for which in self.hit])


def _slices(evidence: Evidence, hits: _Hits) -> Place | None:
    """The slices that are wrong, along those axes where some are not."""
    shape, which = evidence.shape, hits.hit
    partial = [axis for axis, length in enumerate(shape) if len(which[axis]) <= MOST_SLICES * length]
    if not partial:
        return None
    inside = np.zeros(shape, dtype=bool)
    inside[np.ix_(*[which[axis] if axis in partial else np.arange(length) for axis, length in enumerate(shape)])] = True
    words = ", ".join(slices(evidence, axis, which[axis]) + _in_blocks(which[axis], shape[axis]) for axis in partial)
    number = int(np.sum(evidence.wrong))
    dense = number >= DENSE * np.sum(inside) or all(hits.sure[axis] for axis in partial)
    scattered = any(np.any(np.diff(which[axis]) > 1) for axis in partial)
    return Place(inside.ravel(), words if dense else f"{number} entries in {words}", scattered)


def _all_but_a_block(evidence: Evidence, hits: _Hits) -> Iterator[Place]:
    """All but a few slices next to each other, as where a kernel has written one tile only."""
    for axis, length in enumerate(evidence.shape):
        right = np.setdiff1d(np.arange(length), hits.hit[axis])
        if SMALLEST_BLOCK <= len(right) == right[-1] + 1 - right[0]:
            wrong = np.ones(evidence.shape, dtype=bool)
            np.moveaxis(wrong, axis, 0)[right] = False
            words = slices(evidence, axis, right) + _in_blocks(right, length)
            yield Place(wrong.ravel(), words, the_rest=True)


def _in_blocks(which: Indices, length: int) -> str:
    """What a range of slices is to blocks of a power of two: a tail, or a block; "" for neither."""
    start, stop = int(which[0]), int(which[-1]) + 1
    if len(which) != stop - start:
        return ""
    size = stop - start
    if size >= SMALLEST_BLOCK and size & (size - 1) == 0 and start % size == 0:
        return f" (a block of {size})"
    full = start & -start  # the largest power of two that divides it
    if stop == length and full >= SMALLEST_BLOCK and size < full:
        return f" (the tail after the last full block of {full})"
    return ""


def what_is_there(explanation: Explanation, where: Flags) -> str:
    """Words on the candidate's numbers in this part, where one thing holds for all of them; else ""."""
    given, right = explanation.given[where], explanation.compared.right[where]
    if infinite := int(np.sum(~np.isfinite(given))):
        return f", where {infinite} {'is' if infinite == 1 else 'are'} not finite"
    if not np.any(given):
        return ", where it is 0"
    if not np.any(right):
        return ", where it should be 0"
    factor = float(np.dot(given, right) / np.dot(right, right))
    if len(given) > SINGLE_ENTRIES and factor and _is_scaled(explanation, where, factor):
        return f", where it is {factor:.3g} × the right one"
    return ""


def _is_scaled(explanation: Explanation, where: Flags, factor: float) -> bool:
    runs: Sequence[Floats] = [np.where(where, run / factor, run) for run in explanation.compared.candidate]
    left = np.linalg.norm((explanation.given - factor * explanation.compared.right)[where])
    return bool(left <= EXPLAINED * np.linalg.norm(explanation.off[where])) and explanation.passes(runs)
