"""Finds wrong entries of a gradient by bisection, where J's slopes contradict it and no verified gradient is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil, through_stencil
from torch_gradcheck.methods.directional.directions import Direction, Directions, Motion, slope
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
        motion = self._motion(0)
        components = motion.components.clone()
        for _ in range(MOST_LOCATED):
            residual, error_bar = self._residual(motion.scale, components)
            if abs(residual) <= max(self._tolerance, CONTRADICTION * error_bar):
                return
            coordinate = self._descend(motion.scale, components, residual)
            yield coordinate
            components[coordinate] = 0

    def _contradicts(self, number: int) -> bool:
        direction = {self._position: self._motion(number)}
        analytic, reach = np.array([self._slope(direction)]), np.array([self._size / self._scale])
        sampler, unit = self._directions.sampler([direction]), np.array([16 * self._step])
        results = judge_each(entry_check_of(sampler, analytic, unit, reach, self._noise, self._tolerance))
        return contradicts(results, analytic[0])

    def _descend(self, scale: float, components: torch.Tensor, residual: float) -> int:
        """The coordinate that bisection ends at, taking the half with the larger residual every time."""
        low, high = 0, len(components)
        while high - low > 1:
            middle = (low + high) // 2
            first_half = torch.zeros_like(components)
            first_half[low:middle] = components[low:middle]
            left, _ = self._residual(scale, first_half)
            if abs(left) >= abs(residual - left):
                high, residual = middle, left
            else:
                low, residual = middle, residual - left
        return low

    def _residual(self, scale: float, components: torch.Tensor) -> tuple[float, float]:
        """J's slope less the gradient's along `scale · components`, and its error bar.

        Where only n of N components are not 0, they move √(N/n) times as far, so that roundoff weighs less.
        """
        moving = int(torch.count_nonzero(components))
        if not moving:
            return 0.0, 0.0
        further = float(np.sqrt(len(components) / moving))
        direction = {self._position: Motion(scale * further, components)}
        sampler, stencil = self._directions.sampler([direction]), Stencil(self._step, 0)
        found = through_stencil(sampler, np.zeros(1, np.int64), np.ones(1), stencil, self._noise)
        return float(found.central[0] - self._slope(direction)) / further, float(found.roundoff[0]) / further

    def _slope(self, direction: Direction) -> float:
        return slope(direction, {self._position: self._gradient})

    def _motion(self, number: int) -> Motion:
        return self._directions.random(number, {self._position: self._scale})[self._position]
