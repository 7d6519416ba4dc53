"""Least squares slice by slice: values as a combination of a few tensors, with other coefficients in every slice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.arrays import Floats

ENOUGH = 4
"""So many entries beyond the coefficients of a fit, at least, must agree with it."""

LONG = 8
"""A single slice proves a fit if it has at least 8 entries; of shorter ones it takes two."""

INDEPENDENT = 1e-3
"""Slices are independent if a singular value is more than 1e-3 of the largest one."""

MANY, FIRST, ALONG = 50_000, 4, 4096
"""Of tensors with more than 50,000 entries, 4 slices along each axis are fitted first, and of these 4096 entries."""

MOST_GROUPS = 64
"""An axis is cut into at most 64 groups, as channels are by GroupNorm."""

ZERO = 1e-13
"""An entry of at most 1e-13 of the largest is zero."""

SPOILED = 1e-8
"""A slice counts if its norm is more than 1e-8 of the largest one's."""


def axes_of_slices(dimensions: int) -> Iterator[tuple[int, ...]]:
    """Sets of axes that slices may go along, the last axis first: single ones, and all but one."""
    yield from ((axis,) for axis in reversed(range(dimensions)))
    if dimensions > 2:
        for kept in (0, 1, dimensions - 1):
            yield tuple(axis for axis in range(dimensions) if axis != kept)


@dataclass(frozen=True)
class Slices:
    """A way to cut a tensor into slices.

    Attributes:
        shape: that the tensor is viewed in; has one axis more where one is cut into groups.
        axes: of that shape, along which each slice goes.
        words: such as "along axes 2, 3" or "along axes 1, 2, 3 in each of 2 groups of axis 1".
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    words: str

    @property
    def count(self) -> int:
        """How many slices there are."""
        return math.prod(length for axis, length in enumerate(self.shape) if axis not in self.axes)

    def fitted(self, values: Floats, basis: Sequence[Floats], left: float = 0.25) -> Floats | None:
        """As `fitted_by_slices`, shape of `values`."""
        fit = fitted_by_slices(
            values.reshape(self.shape), [each.reshape(self.shape) for each in basis], self.axes, left
        )
        return None if fit is None else fit.reshape(values.shape)

    def centred(self, values: Floats) -> Floats:
        """`values` less the mean of each slice."""
        viewed = values.reshape(self.shape)
        return np.asarray(viewed - np.mean(viewed, axis=self.axes, keepdims=True)).reshape(values.shape)

    def are_independent(self, values: Floats) -> bool:
        """As the function of that name."""
        return are_independent(values.reshape(self.shape), self.axes)


def ways_to_slice(shape: tuple[int, ...]) -> list[Slices]:
    """Ways to cut a tensor into slices, those with the fewest slices first.

    Each goes along the axes that `axes_of_slices` has, along several in a row or, as groups of channels do, along all
    axes but the first in each of several groups of axis 1; or along one of several groups of the last axis.
    """
    dimensions = len(shape)
    in_a_row = [
        tuple(range(a, b)) for a in range(dimensions) for b in range(a + 2, dimensions + 1) if b - a < dimensions
    ]
    axes = dict.fromkeys([*axes_of_slices(dimensions), *in_a_row])
    whole = [Slices(shape, each, along_in_words(each)) for each in axes]
    grouped = [
        _grouped(shape, axis, groups)
        for axis in sorted({1, dimensions - 1})
        if 0 < axis < dimensions
        for groups in range(2, min(shape[axis], MOST_GROUPS + 1))
        if shape[axis] % groups == 0
    ]
    return sorted([*whole, *grouped], key=lambda way: way.count)


def _grouped(shape: tuple[int, ...], axis: int, groups: int) -> Slices:
    """Slices along an axis in each of several groups of it, and along all axes after it."""
    viewed = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    words = f"{along_in_words(tuple(range(axis, len(shape))))} in each of {groups} groups of axis {axis}"
    return Slices(viewed, tuple(range(axis + 1, len(viewed))), words)


def fitted_by_slices(
    values: Floats, basis: Sequence[Floats], axes: tuple[int, ...], left: float = 0.25
) -> Floats | None:
    """The combination of `basis` that is closest to `values` in every slice along `axes`; None if it proved nothing.

    It proves something where each slice has two entries more than coefficients, and where the entries beyond the
    coefficients of all slices that are not zero are enough to exclude coincidence; one that is zero proves nothing, as
    where a mask makes it so. Of many slices, a few are tried
    first: a fit that leaves more than a share `left` of these is dropped.
    """
    count = int(np.prod([values.shape[axis] for axis in axes]))
    if count < len(basis) + 2 or (values.size > MANY and not _fits_at_first(values, basis, axes, left)):
        return None
    sizes = np.sqrt(np.sum(np.square(values), axis=axes))
    spoiled = sizes > SPOILED * np.max(sizes, initial=0.0)
    nonzero = np.sum(np.abs(values) > ZERO * np.max(np.abs(values), initial=0.0), axis=axes)
    beyond = int(np.sum(np.maximum(nonzero - len(basis), 0)[spoiled]))
    too_few = (int(np.sum(spoiled)) < 2 and count < LONG) or beyond < ENOUGH
    return None if too_few else _projected(values, basis, axes)


def _fits_at_first(values: Floats, basis: Sequence[Floats], axes: tuple[int, ...], left: float) -> bool:
    """Whether the beginnings of the first slices fit; those that are next to zero do."""
    along = max(FIRST, round(ALONG ** (1 / len(axes))))
    first = tuple(slice(along if axis in axes else FIRST) for axis in range(values.ndim))
    fitted = _projected(values[first], [each[first] for each in basis], axes)
    allowed = left * np.linalg.norm(values[first]) + SPOILED * np.max(np.abs(values))
    return bool(np.linalg.norm(values[first] - fitted) <= allowed)


def _projected(values: Floats, basis: Sequence[Floats], axes: tuple[int, ...]) -> Floats:
    """`values` projected onto `basis`, slice by slice, by Gram-Schmidt."""
    directions: list[Floats] = []
    for each in basis:
        left = each - sum(_part(each, direction, axes) for direction in directions)
        left = left - sum(_part(left, direction, axes) for direction in directions)  # once more, for the rounding
        directions.append(np.asarray(left))
    return np.asarray(sum(_part(values, direction, axes) for direction in directions))


def _part(values: Floats, direction: Floats, axes: tuple[int, ...]) -> Floats:
    """The part of `values` along `direction` in every slice; 0 where that is 0."""
    square = np.sum(np.square(direction), axis=axes, keepdims=True)
    product = np.sum(values * direction, axis=axes, keepdims=True)
    return np.asarray(np.divide(product, square, out=np.zeros_like(square), where=square > 0) * direction)


def are_independent(values: Floats, axes: tuple[int, ...]) -> bool:
    """Whether the slices along `axes` are no multiples of one: else they are so again after most mistakes upstream."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    count = int(np.prod([values.shape[axis] for axis in axes]))
    slices = np.transpose(values, [*kept, *axes]).reshape(-1, count)
    return int(np.linalg.matrix_rank(slices, rtol=INDEPENDENT)) > 1


def along_in_words(axes: tuple[int, ...]) -> str:
    """The words "along axis 1" or "along axes 0, 2"."""
    return f"along {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
