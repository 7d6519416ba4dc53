"""The error bars of a candidate: how far rounding in its dtype may move a right result, measured on the reference.

The reference is run in the candidate's dtypes, plainly and with rounding as noise (`rounded.py`). What these runs are
off by is what rounding does: to one entry, and to sums over many (`wholes.py`). The noise is larger than rounding to
nearest (`rounding_noise.MOVED`), by 1.7 in its standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.training_step.error_bars import of_entries_alike

MARGIN = 4.0
"""The error bar of an entry, in multiples of the furthest run. Over 2,430 tensors of right kernels in bfloat16 (24
operations, up to four references and ten kernels of each) 99 % were off by at most 0.25 of the bar. Beyond it was only
torch's own layer norm, which adds up the gradient of its bias in bfloat16. Where all terms of a gradient cancel, as in
attention to one key, right kernels of float32 reach 0.3 of the bar, and of a sum 0.3 (1,696 tensors)."""

SYSTEMATIC = 4.0
"""Units in the last place of float32 that a factor of a whole tensor, row or column may be off by: fast exponentials
and reciprocal square roots are wrong by a few, and all entries that they multiply alike."""

ORDER = 2.0
"""All bars of float32 and float64 in multiples of those of coarser dtypes, whose kernels add up in float32: beside one
order of a sum of n terms another is off by √n roundings."""

SINGLE = float(np.finfo(np.float32).eps)
"""Machine epsilon of float32, in which kernels of coarser dtypes add up."""

FLUSHED = float(np.finfo(np.float32).tiny)
"""Numbers below are flushed to 0 by many a device."""


@dataclass(frozen=True)
class Bars:
    """How far rounding may move a right tensor.

    Attributes:
        entry: each entry, shape (coordinates,); where `overflowed`, by what the other entries and runs show.
        moves: the reference's runs, each with what is right, and runs of the candidate that differ, with the first.
        variance: of an entry's error, shape (coordinates,).
        overflowed: entries that are not finite in one of these runs.
        order: how many times larger all bars are since sums may be taken in another order.
        factor: the share of itself that a tensor, or a part of it, may be too large by: a constant rounded once.
        left: what may be left of terms of the size of the largest entry, which cancel: one unit in their last place.
            It may be common to many entries, as what a row is multiplied by.
    """

    entry: Floats
    moves: Sequence[tuple[Floats, Floats]]
    variance: Floats
    overflowed: Flags
    order: float
    factor: float
    left: float

    def errors(self, start: int, stop: int) -> Floats:
        """What these of the `moves` are off by, shape (moves, coordinates); 0 where `overflowed`."""
        chosen = self.moves[start:stop]
        with np.errstate(all="ignore"):
            errors = np.array([run - origin for run, origin in chosen]).reshape(len(chosen), len(self.entry))
        errors[:, self.overflowed] = 0.0
        return errors


def bars_of(each: Compared) -> Bars:
    """The bars of one tensor: of rounding, and of what equal runs of the candidate differ by."""
    first, shape, floor = each.candidate[0], each.shape, _least(each)
    moves = [(run, each.right) for run in each.rounded]
    moves += [(run, first) for run in each.candidate[1:] if run is not first and np.any(run != first)]
    overflowed = np.zeros(len(first), dtype=bool)
    total, second, furthest = np.zeros((3, len(first)))
    for run, origin in moves:  # one by one: of millions of entries all together take gigabytes
        with np.errstate(all="ignore"):
            square = np.square(run - origin)
        overflowed |= ~np.isfinite(square)
        total += square
        second = np.maximum(second, np.minimum(furthest, square))
        furthest = np.maximum(furthest, square)
    total[overflowed] = second[overflowed] = furthest[overflowed] = 0.0
    variance = total / max(len(moves), 1)
    variance = np.maximum(np.maximum(variance, of_entries_alike(variance, shape)), np.square(floor) / 3)
    moved = np.sqrt(np.maximum(furthest, of_entries_alike(furthest, shape)))
    order = ORDER if each.epsilon <= SINGLE else 1.0
    entry = MARGIN * order * np.maximum(moved, floor) * _tail(second, furthest, shape)
    factor = max(0.5 * each.epsilon, SYSTEMATIC * min(each.epsilon, SINGLE))
    return Bars(entry, moves, variance, overflowed, order, factor, _left(each))


def _least(each: Compared) -> Floats:
    """The least that rounding may move an entry by.

    Half a unit in its last place, or half of the smallest number of the dtype; and one unit in the last place of
    float32 of the largest entry, where terms of that size cancel in a kernel that does not in the reference.
    """
    smallest = max(FLUSHED, each.smallest / 2)
    return np.asarray(0.5 * each.epsilon * _size(each) + smallest + _left(each))


def _left(each: Compared) -> float:
    return min(each.epsilon, SINGLE) * float(np.max(_size(each), initial=0.0))


def _size(each: Compared) -> Floats:
    return np.abs(np.nan_to_num(each.right, nan=0.0, posinf=0.0, neginf=0.0))


def _tail(second: Floats, furthest: Floats, shape: tuple[int, ...]) -> float:
    """By how much the bars are too small for the runs themselves: how far one is off where the others are not.

    Among millions of entries some are moved far by one run only; the candidate is one more run.

    Args:
        second: the square of the second largest error of each entry.
        furthest: that of the largest.
        shape: of the tensor.
    """
    others = np.maximum(second, of_entries_alike(second, shape))
    times = np.sqrt(np.divide(furthest, others, out=np.zeros_like(others), where=others > 0))
    return max(1.0, 2 * float(np.max(times, initial=0.0)) / MARGIN)
