"""Where in a tensor the wrong entries lie, in words: rows, columns, channels, or single entries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from torch_gradcheck.arrays import Flags, Indices
from torch_gradcheck.diagnosis.kind.evidence import Evidence

NAMED = 6
"""How many indices or ranges are named one by one."""

SINGLE = 3
"""So many wrong entries are named one by one, unless they make up a whole slice."""

MOST = 0.75
"""Where more slices than this are wrong, the right ones are the exception."""

FEW = 0.25
"""Wrong entries without a pattern are told one by one up to this share of all that say something ..."""

ENTRIES = 12
"""... or where they are no more than this."""


def wrong_places(evidence: Evidence) -> str:
    """Where the wrong entries are if others are proven right, such as "rows 3-5 of 10"; "" where no place can be named.

    An axis names them if the slices along it are either free of wrong entries or free of proven right ones. Else they
    are confined to few of the slices along some axis, or are few themselves.
    """
    if not evidence.right.any() or not evidence.wrong.any():
        return ""
    if int(evidence.wrong.sum()) <= SINGLE:
        return _whole_slices(evidence) or _entries(evidence)
    return _whole_slices(evidence) or _block(evidence) or _few_slices(evidence) or _entries(evidence)


def _whole_slices(evidence: Evidence) -> str:
    for axis in range(len(evidence.shape)):
        wrong, right = _along(evidence, evidence.wrong, axis), _along(evidence, evidence.right, axis)
        if not np.any(wrong & right) and np.sum(wrong) <= MOST * np.sum(wrong | right):
            return slices(evidence.shape, axis, np.flatnonzero(wrong), evidence.has_complex_axis)
    return ""


def _block(evidence: Evidence) -> str:
    """Rows and columns at once: "rows 2-3 of 4, columns 1-2 of 6"."""
    which = [np.flatnonzero(_along(evidence, evidence.wrong, axis)) for axis in range(len(evidence.shape))]
    inside = np.ix_(*which)
    if np.any(evidence.right.reshape(evidence.shape)[inside]) or math.prod(map(len, which)) > FEW * evidence.wrong.size:
        return ""
    partial = [axis for axis, indices in enumerate(which) if len(indices) < evidence.shape[axis]]
    return ", ".join(slices(evidence.shape, axis, which[axis], evidence.has_complex_axis) for axis in partial)


def _few_slices(evidence: Evidence) -> str:
    if len(evidence.shape) < 2:
        return ""
    shares = [(float(np.mean(_along(evidence, evidence.wrong, axis))), axis) for axis in range(len(evidence.shape))]
    share, axis = min(shares)
    if share > FEW:
        return ""
    named = slices(
        evidence.shape, axis, np.flatnonzero(_along(evidence, evidence.wrong, axis)), evidence.has_complex_axis
    )
    return f"{int(evidence.wrong.sum())} entries in {named}"


def _entries(evidence: Evidence) -> str:
    wrong = np.flatnonzero(evidence.wrong)
    said = int(np.sum(evidence.resolved | evidence.wrong))
    if len(wrong) > max(FEW * said, 1) or (len(wrong) > ENTRIES and len(evidence.shape) < 2):
        return ""
    indices = [str(list(map(int, np.unravel_index(k, evidence.shape)))) for k in wrong[:NAMED]]
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return f"{'entry' if len(wrong) == 1 else 'entries'} {', '.join(indices)}{more}"


def _along(evidence: Evidence, flags: Flags, axis: int) -> Flags:
    """Which slices along `axis` have a flagged entry."""
    others = tuple(other for other in range(len(evidence.shape)) if other != axis)
    return np.asarray(flags.reshape(evidence.shape).any(axis=others))


def slices(shape: Sequence[int], axis: int, which: Indices, has_complex_axis: bool = False) -> str:
    """Slices along an axis in words: "rows 3-5 of 10", "column 2 of 4"; the last one may be (real, imaginary) parts."""
    if len(shape) > 1 and axis == len(shape) - 1 and has_complex_axis:
        return "the imaginary part" if which[0] else "the real part"
    one, many = words_of_axis(len(shape) - has_complex_axis, axis)
    ranges = _ranges(which)
    named = ", ".join(ranges[:NAMED]) + (", ..." if len(ranges) > NAMED else "")
    return f"{one if len(which) == 1 else many} {named} of {shape[axis]}"


def words_of_axis(dimensions: int, axis: int) -> tuple[str, str]:
    """What slices along an axis are called, one and many."""
    if dimensions == 1:
        return "entry", "entries"
    if dimensions == 2:
        return ("row", "rows") if axis == 0 else ("column", "columns")
    if axis < 2:
        return ("output channel", "output channels") if axis == 0 else ("input channel", "input channels")
    return f"index along axis {axis}", f"indices along axis {axis}"


def _ranges(which: Indices) -> list[str]:
    """`["0", "3-5"]` for 0, 3, 4, 5."""
    breaks = np.flatnonzero(np.diff(which) > 1) + 1
    runs = np.split(which, breaks)
    return [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run)]
