"""The parts of a tensor that a kernel may get wrong on their own: slices and blocks of slices along its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torch_gradcheck.arrays import Flags, Floats, Indices

BLOCKS = (16, 32, 64, 128)
"""How many slices make a block: the sizes of tiles that kernels are written with."""

ENTRIES_NEEDED = 16
"""Parts of fewer entries are left to the judgement entry by entry: there is little to average over."""


@dataclass(frozen=True)
class Part:
    """Slices of a tensor next to each other.

    Attributes:
        axes: the axes that are cut, (1,) or, where leading axes are cut as one, (0, 1); () for all of the tensor.
        start, stop: which slices: indices into the axis, or into the axes as one.
    """

    axes: tuple[int, ...]
    start: int
    stop: int

    def __str__(self) -> str:
        if not self.axes:
            return "all of it"
        along = f"dimension {self.axes[0]}" if len(self.axes) == 1 else f"dimensions {self.axes[0]} to {self.axes[-1]}"
        one = f"slice {self.start}" if self.stop == self.start + 1 else f"slices {self.start} to {self.stop - 1}"
        return f"{one} along {along}"

    def inside(self, shape: Sequence[int]) -> Flags:
        """Which coordinates of a tensor of this shape are in it, shape (coordinates,)."""
        first, last = (self.axes[0], self.axes[-1] + 1) if self.axes else (0, 0)
        chosen = np.zeros((math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])), dtype=bool)
        chosen[:, self.start : self.stop] = True
        return chosen.ravel()


@dataclass(frozen=True)
class Cut:
    """A tensor cut along some axes into slices, and these gathered in blocks.

    Attributes:
        shape: of the tensor.
        axes: see `Part`.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of slices."""
        return math.prod([self.shape[axis] for axis in self.axes])

    @cached_property
    def counts(self) -> Floats:
        """The number of coordinates in each part."""
        return self.sums(np.ones(math.prod(self.shape)))

    @property
    def largest(self) -> int:
        """The number of coordinates in the largest slice."""
        return math.prod(self.shape) // max(self.count, 1)

    @cached_property
    def starts(self) -> list[Indices]:
        """Where the blocks of each size begin; every slice on its own first."""
        sizes = [1, *[size for size in BLOCKS if size < self.count]] if self.axes else [1]
        return [np.arange(0, self.count, size) for size in sizes]

    def sums(self, values: Floats) -> Floats:
        """The sums over all parts, from arrays of shape (..., coordinates) to (..., parts)."""
        first, last = (self.axes[0], self.axes[-1] + 1) if self.axes else (0, 0)
        before, after = math.prod(self.shape[:first]), math.prod(self.shape[last:])
        folded = values.reshape(*values.shape[:-1], before, self.count, after)
        slices = folded.sum(axis=(-3, -1))
        return np.concatenate([np.add.reduceat(slices, starts, axis=-1) for starts in self.starts], axis=-1)

    def part(self, number: int) -> Part:
        """The part at this position of the sums."""
        bounds = [pair for starts in self.starts for pair in zip(starts, [*starts[1:], self.count], strict=True)]
        return Part(self.axes, int(bounds[number][0]), int(bounds[number][1]))


def cuts_of(shape: Sequence[int]) -> list[Cut]:
    """No cut at all, then along each axis, then along the leading axes as one: every (batch, head), every row."""
    shape, axes = tuple(shape), tuple(range(len(shape)))
    single = [(axis,) for axis in axes if shape[axis] > 1]
    leading = [axes[:stop] for stop in range(2, len(axes)) if math.prod(shape[: stop - 1]) > 1 and shape[stop - 1] > 1]
    return [Cut(shape, cut) for cut in [(), *single, *leading]]
