"""Least squares slice by slice: values as a combination of a few tensors, with other coefficients in every slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats

ENOUGH = 4
"""So many entries beyond the coefficients of a fit, at least, must agree with it."""

LONG = 8
"""A single slice proves a fit if it has at least 8 entries; of shorter ones it takes two."""

SPOILED = 1e-8
"""A slice counts if its norm is more than 1e-8 of the largest one's."""


class SliceFit(NamedTuple):
    """The combination that is closest to the values, shape of these, and its coefficients, shape (slices, tensors)."""

    values: Floats
    coefficients: Floats


def axes_of_slices(dimensions: int) -> Iterator[tuple[int, ...]]:
    """Sets of axes that slices may go along, the last axis first: single ones, and all but one."""
    yield from ((axis,) for axis in reversed(range(dimensions)))
    if dimensions > 2:
        for kept in (0, 1, dimensions - 1):
            yield tuple(axis for axis in range(dimensions) if axis != kept)


def fitted_by_slices(values: Floats, basis: Sequence[Floats], axes: tuple[int, ...]) -> SliceFit | None:
    """The fit of `values` by the tensors of `basis` in every slice along `axes`; None where it would prove nothing.

    It proves something where each slice has two entries more than coefficients, and where the entries beyond the
    coefficients of all slices that are not zero are enough to exclude coincidence.
    """
    count = int(np.prod([values.shape[axis] for axis in axes]))
    if count < len(basis) + 2:
        return None
    order = [*(axis for axis in range(values.ndim) if axis not in axes), *axes]
    target = np.transpose(values, order).reshape(-1, count, 1)
    columns = np.stack([np.transpose(each, order).reshape(-1, count) for each in basis], axis=-1)
    sizes = np.linalg.norm(target, axis=1)[:, 0]
    spoiled = int(np.sum(sizes > SPOILED * np.max(sizes, initial=0.0)))
    too_few = (spoiled < 2 and count < LONG) or spoiled * (count - len(basis)) < ENOUGH
    if too_few or not np.all(np.isfinite(columns)):
        return None
    coefficients = np.linalg.pinv(columns, rcond=1e-12) @ target
    fitted = (columns @ coefficients).reshape([values.shape[axis] for axis in order])
    return SliceFit(np.asarray(np.transpose(fitted, np.argsort(order))), np.asarray(coefficients[..., 0]))


def along_in_words(axes: tuple[int, ...]) -> str:
    """The words "along axis 1" or "along axes 0, 2"."""
    return f"along {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
