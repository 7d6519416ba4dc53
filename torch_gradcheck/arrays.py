"""The numpy arrays of numerical code, by dtype: Floats (float64), Indices (int64), Flags (bool); and their blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Indices = NDArray[np.int64]

Flags = NDArray[np.bool_]

BLOCK = 2**17
"""Entries of a long array that are worked on at a time: a megabyte in float64, nothing beside a large array."""


def blocks(length: int) -> list[slice]:
    """The slices that make up an array of this length, `BLOCK` entries each but for the last."""
    return [slice(begin, begin + BLOCK) for begin in range(0, length, BLOCK)]


def largest_entry(values: Floats) -> float:
    """The largest absolute value among the finite entries; 0 without any."""
    return max([_largest_of_block(values[block]) for block in blocks(len(values))], default=0.0)


def by_number(change: Callable[[Floats], Floats], values: Floats) -> Floats:
    """`change`, which works entry by entry, of an array; of one number only where that is broadcast to all entries."""
    if len(values) > 1 and not any(values.strides):
        return np.broadcast_to(change(values[:1]), values.shape)
    return change(values)


def _largest_of_block(values: Floats) -> float:
    sizes = np.abs(values)
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))
