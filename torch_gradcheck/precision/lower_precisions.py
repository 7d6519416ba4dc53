"""Detects that numbers were rounded to a lower precision: then it holds every one of them exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats

MIN_NONZERO = 2
"""The number of values other than 0 that are needed: a single one may have few digits by chance, such as 0.5."""


TRIED_FIRST = 256
"""The first 256 numbers of each array are tried first: as a rule they are of the check's own precision."""


class Rounding(NamedTuple):
    """The name of a precision lower than that of the check, and its machine epsilon."""

    name: str
    epsilon: float


def rounding_of_all(arrays: Sequence[Floats]) -> Rounding | None:
    """The coarsest lower precision that holds all these numbers exactly; None without one, or if one is not finite."""
    if not arrays or not may_be_rounded(np.concatenate([np.ravel(array)[:TRIED_FIRST] for array in arrays])):
        return None
    values = np.concatenate([np.ravel(array) for array in arrays])
    if np.sum(values != 0) < MIN_NONZERO or not np.all(np.isfinite(values)):
        return None
    with np.errstate(over="ignore"):
        return next((rounding for rounding, rounded in _rounded(values) if np.array_equal(rounded, values)), None)


def held_by(name: str, values: Floats) -> Flags:
    """Which numbers the lower precision of this name holds exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        return next(np.equal(rounded, values) for rounding, rounded in _rounded(values) if rounding.name == name)


def may_be_rounded(values: Floats) -> bool:
    """Whether some lower precision may hold all these numbers, or they are not finite: float32 holds what others do."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array_equal(values.astype(np.float32).astype(np.float64), values, equal_nan=True)


def _rounded(values: Floats) -> Iterator[tuple[Rounding, Floats]]:
    """The values rounded to each lower precision, the coarsest first."""
    single = values.astype(np.float32)
    yield Rounding("bfloat16", 2.0**-7), _upper_half(single)
    yield Rounding("float16", 2.0**-10), values.astype(np.float16).astype(np.float64)
    yield Rounding("float32", 2.0**-23), single.astype(np.float64)


def _upper_half(single: NDArray[np.float32]) -> Floats:
    """The upper 16 bits of each float32, which are a bfloat16."""
    return (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
