"""Finds wrong entries of a gradient by bisection, where J's slopes contradict it and no verified gradient is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil, through_stencil
from torch_gradcheck.methods.directional.directions import Directions, slope
from torch_gradcheck.methods.directional.motions import Direction, Drawn, Part
from torch_gradcheck.methods.directional.slope_check import contradicts, entry_check_of
from torch_gradcheck.verdicts.entry_check import CONTRADICTION
from torch_gradcheck.verdicts.judge import judge_each

MOST_LOCATED = 3
"""How many wrong coordinates of a tensor are looked for, at most."""

CONTRADICTING = 4
"""How many random directions must contradict a gradient, out of as many tried."""


class Bisection:
    """One tensor's gradient on trial against J, by directions through the tensor or through parts of it.

    Args:
        directions: evaluates J along directions.
        position: of the parameter in θ.
        gradient: shape (coordinates,), the gradient on trial, finite.
        scale: how far a step of 1 moves a coordinate.
        step: of the differences; one at which a right gradient agrees.
        noise: of J.
        tolerance: the largest relative error that passes.
    """

    def __init__(
        self,
        directions: Directions,
        position: int,
        gradient: Floats,
        scale: float,
        step: float,
        noise: Noise,
        tolerance: float,
    ) -> None:
        self._directions, self._position, self._gradient = directions, position, gradient
        self._scale, self._step, self._noise, self._tolerance = scale, step, noise, tolerance
        self._size = directions.sizes[position]

    def contradicted(self) -> bool:
        """Whether J's slope contradicts the gradient along each of the first `CONTRADICTING` random directions."""
        return all(self._contradicts(number) for number in range(CONTRADICTING))

    def wrong_coordinates(self) -> Iterator[int]:
        """Yields coordinates that may be wrong, worst first, until the rest is right or `MOST_LOCATED` are found."""
        whole, without = self._whole(0), list[int]()
        entries = len(whole[self._position].components)
        for _ in range(MOST_LOCATED):
            residual, error_bar = self._residuals(whole, [(0, entries)], without)[0, entries]
            if abs(residual) <= max(self._tolerance, CONTRADICTION * error_bar):
                return
            coordinate = self._descend(whole, without, entries, residual)
            yield coordinate
            without.append(coordinate)

    def _contradicts(self, number: int) -> bool:
        direction = self._whole(number)
        analytic, reach = np.array([self._slope(direction)]), np.array([self._size / self._scale])
        sampler, unit = self._directions.sampler([direction]), np.array([16 * self._step])
        results = judge_each(entry_check_of(sampler, analytic, unit, reach, self._noise, self._tolerance))
        return contradicts(results, analytic[0])

    def _descend(self, whole: Drawn, without: Sequence[int], entries: int, residual: float) -> int:
        """The coordinate that bisection ends at, taking the half with the larger residual every time."""
        begin, end, found = 0, entries, dict[tuple[int, int], tuple[float, float]]()
        while end - begin > 1:
            middle = (begin + end) // 2
            if (begin, middle) not in found:
                found = self._residuals(whole, _first_halves(begin, end, self._directions.at_a_time), without)
            left, _ = found[begin, middle]
            if abs(left) >= abs(residual - left):
                end, residual = middle, left
            else:
                begin, residual = middle, residual - left
        return begin

    def _residuals(
        self, whole: Drawn, ranges: Sequence[tuple[int, int]], without: Sequence[int]
    ) -> dict[tuple[int, int], tuple[float, float]]:
        """J's slope less the gradient's along parts of a random direction, and its error bar, by range."""
        found = dict.fromkeys(ranges, (0.0, 0.0))
        parts = {each: Part(whole, self._position, *each, without) for each in ranges}
        moving = [each for each, part in parts.items() if part.moving]
        slopes = np.zeros(len(moving))

        def visit(k: int) -> None:
            slopes[k] = self._slope(parts[moving[k]])

        sampler = self._directions.sampler([parts[each] for each in moving], visit=visit)
        if moving:
            which, stencil = np.arange(len(moving)), Stencil(self._step, 0)
            slope = through_stencil(sampler, which, np.ones(len(moving)), stencil, self._noise)
            for k, each in enumerate(moving):
                further = parts[each].further
                found[each] = float(slope.central[k] - slopes[k]) / further, float(slope.roundoff[k]) / further
        return found

    def _slope(self, direction: Direction) -> float:
        return slope(direction, {self._position: self._gradient})

    def _whole(self, number: int) -> Drawn:
        return self._directions.random(number, {self._position: self._scale})


def _first_halves(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """The first half of a range, and of the halves that bisection may come to next, up to so many."""
    ranges, halves = [(begin, end)], list[tuple[int, int]]()
    while ranges and len(halves) < count:
        begin, end = ranges.pop(0)
        if end - begin > 1:
            middle = (begin + end) // 2
            halves.append((begin, middle))
            ranges += [(begin, middle), (middle, end)]
    return halves
