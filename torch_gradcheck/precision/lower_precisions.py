"""Which lower precision numbers have gone through: those that it can hold exactly give it away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Floats

TELLING = 2
"""How many numbers besides zero it takes: one may be short by chance."""


class Rounding(NamedTuple):
    """A precision lower than that of the check, and its machine epsilon."""

    name: str
    epsilon: float


def rounding_of_all(arrays: Sequence[Floats]) -> Rounding | None:
    """The coarsest precision that holds every one of these numbers exactly, None where there is none."""
    values = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.empty(0)
    if np.sum(values != 0) < TELLING or not np.all(np.isfinite(values)):
        return None
    with np.errstate(over="ignore"):
        return next((rounding for rounding, held in _held(values) if np.array_equal(held, values)), None)


def _held(values: Floats) -> Iterator[tuple[Rounding, Floats]]:
    """The values rounded to each lower precision, the coarsest first."""
    single = values.astype(np.float32)
    yield Rounding("bfloat16", 2.0**-7), _upper_half(single)
    yield Rounding("float16", 2.0**-10), values.astype(np.float16).astype(np.float64)
    yield Rounding("float32", 2.0**-23), single.astype(np.float64)


def _upper_half(single: NDArray[np.float32]) -> Floats:
    """The upper 16 bits of each float32; a number that has no others is a bfloat16."""
    return (single.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
