"""Where in a tensor the wrong entries lie, in words: rows, columns, channels, or single entries."""

from __future__ import annotations

import math

import numpy as np

from torch_gradcheck.arrays import Flags, Indices
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.reporting.words import listed

MOST_NAMED = 6
"""At most 6 indices or ranges are written out: "rows 0, 2, 4, 6, 8, 10, ... of 20"."""

SINGLE_ENTRIES = 3
"""Up to 3 wrong entries are named one by one, unless they make up a whole slice."""

MOST_SLICES = 0.75
"""Slices are named only if at most 3/4 of them are wrong; with more, the right ones are the exception."""

FEW = 0.25
"""A block, slices or single entries are named as a place only if they make up at most 1/4 of the tensor."""

MOST_OF_VECTOR = 12
"""In a tensor of one axis, wrong entries without a pattern are named only if there are at most 12 of them."""


def wrong_places(evidence: Evidence) -> str:
    """The places of the wrong entries in words, such as "rows 3-5 of 10"; "" where no place can be named.

    Needs entries that are proven right. Whole slices are named if every slice along an axis is either free of wrong
    entries or free of proven right ones. Else the wrong entries are confined to a block, to few of the slices along
    some axis, or are few themselves.
    """
    if not evidence.right.any() or not evidence.wrong.any():
        return ""
    if int(evidence.wrong.sum()) <= SINGLE_ENTRIES:
        whole = "" if _is_less_than_half(evidence) else _whole_slices(evidence)
        return whole or _entries(evidence)
    return _whole_slices(evidence) or _block(evidence) or _few_slices(evidence) or _entries(evidence)


def _is_less_than_half(evidence: Evidence) -> bool:
    """Whether most entries of each slice that holds wrong ones pass, though not all of them are proven right."""
    passes = (evidence.resolved & ~evidence.wrong).reshape(evidence.shape)
    wrong = evidence.wrong.reshape(evidence.shape)
    for axis in range(len(evidence.shape)):
        others = tuple(other for other in range(len(evidence.shape)) if other != axis)
        if np.any(wrong.sum(axis=others) > passes.sum(axis=others)):
            return False
    return True


def _whole_slices(evidence: Evidence) -> str:
    for axis in range(len(evidence.shape)):
        wrong, right = _along(evidence, evidence.wrong, axis), _along(evidence, evidence.right, axis)
        if not np.any(wrong & right) and np.sum(wrong) <= MOST_SLICES * np.sum(wrong | right):
            return slices(evidence, axis, np.flatnonzero(wrong))
    return ""


def _block(evidence: Evidence) -> str:
    """Rows and columns at once: "rows 2-3 of 4, columns 1-2 of 6"."""
    which = [np.flatnonzero(_along(evidence, evidence.wrong, axis)) for axis in range(len(evidence.shape))]
    inside = np.ix_(*which)
    if np.any(evidence.right.reshape(evidence.shape)[inside]) or math.prod(map(len, which)) > FEW * evidence.wrong.size:
        return ""
    partial = [axis for axis, indices in enumerate(which) if len(indices) < evidence.shape[axis]]
    return ", ".join(slices(evidence, axis, which[axis]) for axis in partial)


def _few_slices(evidence: Evidence) -> str:
    if len(evidence.shape) < 2:
        return ""
    shares = [(float(np.mean(_along(evidence, evidence.wrong, axis))), axis) for axis in range(len(evidence.shape))]
    share, axis = min(shares)
    if share > FEW:
        return ""
    named = slices(evidence, axis, np.flatnonzero(_along(evidence, evidence.wrong, axis)))
    return f"{int(evidence.wrong.sum())} entries in {named}"


def _entries(evidence: Evidence) -> str:
    wrong = np.flatnonzero(evidence.wrong)
    informative = int(np.sum(evidence.resolved | evidence.wrong))
    if len(wrong) > max(FEW * informative, 1) or (len(wrong) > MOST_OF_VECTOR and len(evidence.shape) < 2):
        return ""

    def index(k: int) -> str:
        return str(list(map(int, np.unravel_index(k, evidence.shape))))

    return f"{'entry' if len(wrong) == 1 else 'entries'} {listed(wrong.tolist(), MOST_NAMED, index)}"


def _along(evidence: Evidence, flags: Flags, axis: int) -> Flags:
    """Slices along `axis` that have a flagged entry, shape (length of that axis,)."""
    others = tuple(other for other in range(len(evidence.shape)) if other != axis)
    return np.asarray(flags.reshape(evidence.shape).any(axis=others))


def slices(evidence: Evidence, axis: int, which: Indices) -> str:
    """Slices along an axis in words: "rows 3-5 of 10", "index 2 of 4 along axis 3", or one of the complex parts."""
    shape = evidence.shape
    if len(shape) > 1 and axis == len(shape) - 1 and evidence.has_complex_axis:
        return "the imaginary part" if which[0] else "the real part"
    one, many = words_of_axis(len(shape) - evidence.has_complex_axis, axis, evidence.has_channels)
    noun, _, along = (one if len(which) == 1 else many).partition(" along ")
    return f"{noun} {in_ranges(which)} of {shape[axis]}" + (f" along {along}" if along else "")


def words_of_axis(dimensions: int, axis: int, has_channels: bool = True) -> tuple[str, str]:
    """The words for slices along an axis, one and many: ("row", "rows") for axis 0 of 2."""
    if dimensions == 1:
        return "entry", "entries"
    if dimensions == 2:
        return ("row", "rows") if axis == 0 else ("column", "columns")
    if axis < 2 and has_channels:
        return ("output channel", "output channels") if axis == 0 else ("input channel", "input channels")
    return f"index along axis {axis}", f"indices along axis {axis}"


def in_ranges(which: Indices) -> str:
    """Sorted indices as ranges: "0, 3-5" for 0, 3, 4, 5."""
    breaks = np.flatnonzero(np.diff(which) > 1) + 1
    runs = [run for run in np.split(which, breaks) if len(run)]
    named = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:MOST_NAMED]]
    return ", ".join(named) + (", ..." if len(runs) > MOST_NAMED else "")
