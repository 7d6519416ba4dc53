"""The error bars of a candidate: how far rounding in its dtype may move a right result, measured on the reference.

The reference is run in the candidate's dtypes, plainly and with rounding as noise (`rounded.py`). What these runs are
off by is what rounding does: to one entry, and to sums over many (`wholes.py`). The noise is larger than rounding to
nearest (`rounding_noise.MOVED`), by 1.7 in its standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.training_step.error_bars import of_entries_alike

MARGIN = 4.0
"""The error bar of an entry, in multiples of the furthest run. Over 2,430 tensors of right kernels in bfloat16 (24
operations, up to four references and ten kernels of each) 99 % were off by at most 0.25 of the bar. Beyond it were only
torch's own layer norm, which adds up the gradient of its bias in bfloat16, and a saturated softmax beside a reference
that differentiates the maximum it subtracts, and so loses nothing there."""

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
        errors: of the reference's runs, and between equal runs of the candidate, shape (runs, coordinates); 0 where
            `overflowed`.
        variance: of an entry's error, shape (coordinates,).
        overflowed: entries that are not finite in one of these runs.
        order: how many times larger all bars are since sums may be taken in another order.
        factor: the share of itself that a tensor, or a part of it, may be too large by: a constant rounded once.
    """

    entry: Floats
    errors: Floats
    variance: Floats
    overflowed: Flags
    order: float
    factor: float


def bars_of(each: Compared) -> Bars:
    """The bars of one tensor: of rounding, and of what equal runs of the candidate differ by."""
    with np.errstate(all="ignore"):
        errors = np.concatenate([np.array(each.rounded) - each.right, _between_runs(each)])
    overflowed = ~np.all(np.isfinite(errors), axis=0)
    errors[:, overflowed] = 0.0
    squares, floor, shape = np.square(errors), _least(each), each.shape
    variance = squares.mean(axis=0)
    variance = np.maximum(np.maximum(variance, of_entries_alike(variance, shape)), np.square(floor) / 3)
    furthest = squares.max(axis=0, initial=0.0)
    moved = np.sqrt(np.maximum(furthest, of_entries_alike(furthest, shape)))
    order = ORDER if each.epsilon <= SINGLE else 1.0
    entry = MARGIN * order * np.maximum(moved, floor) * _tail(squares, shape)
    factor = max(0.5 * each.epsilon, SYSTEMATIC * min(each.epsilon, SINGLE))
    return Bars(entry, errors, variance, overflowed, order, factor)


def _between_runs(each: Compared) -> Floats:
    """What runs of the candidate differ by from the first, shape (runs, coordinates); no run where all are equal."""
    others = np.array([run - each.candidate[0] for run in each.candidate]).reshape(len(each.candidate), -1)
    return np.asarray(others[np.any(others != 0, axis=1)])


def _least(each: Compared) -> Floats:
    """The least that rounding may move an entry by.

    Half a unit in its last place, or half of the smallest number of the dtype; and one unit in the last place of
    float32 of the largest entry, where terms of that size cancel in a kernel that does not in the reference.
    """
    size = np.abs(np.nan_to_num(each.right, nan=0.0, posinf=0.0, neginf=0.0))
    largest = float(np.max(size, initial=0.0))
    smallest = max(FLUSHED, each.smallest / 2)
    return np.asarray(0.5 * each.epsilon * size + smallest + min(each.epsilon, SINGLE) * largest)


def _tail(squares: Floats, shape: tuple[int, ...]) -> float:
    """By how much the bars are too small for the runs themselves: how far one is off where the others are not.

    Among millions of entries some are moved far by one run only; the candidate is one more run.
    """
    if len(squares) < 2:
        return 1.0
    second, furthest = np.partition(squares, len(squares) - 2, axis=0)[-2:]
    others = np.maximum(second, of_entries_alike(second, shape))
    times = np.sqrt(np.divide(furthest, others, out=np.zeros_like(others), where=others > 0))
    return max(1.0, 2 * float(np.max(times, initial=0.0)) / MARGIN)
