"""The noise of every quantity of the outputs, measured near the inputs and away from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import POINTS, Noise, measured_noise
from torch_gradcheck.methods.noise import FAR, GROWS, POINTS_FAR, SPACING_OF_STAIRS
from torch_gradcheck.objective.perturbation import RandomDirection

LEAST = 1e-8
"""A quantity is as noisy as the rounding of a number 1e8 times smaller than those beside it, at least."""

Quantities = Callable[[], Floats]
"""The quantities of the rows, shape (M,), at what the inputs are moved to."""


class RowNoise(NamedTuple):
    """The noise of M quantities.

    Attributes:
        at_zero: shape (M,), the quantities where no input is moved.
        sigma: shape (M,), one standard deviation of each; positive.
        growth: noise per relative step, in units of `sigma`.
        epsilon: machine epsilon of the precision of the function.
    """

    at_zero: Floats
    sigma: Floats
    growth: float
    epsilon: float

    @property
    def level(self) -> float:
        """The size of a typical quantity in units of its noise; about 1e16 in float64."""
        size = float(np.median(np.abs(self.at_zero) / self.sigma)) if len(self.sigma) else 1.0
        return min(max(size, 1.0), 1 / self.epsilon)

    @property
    def in_units(self) -> Noise:
        """The noise of the quantities in units of their noise, shifted so that each is `level` at 0.

        The shift rounds by about one such unit, which doubles the noise.
        """
        return Noise(self.level, 2.0, self.epsilon, 2 * self.growth)


def row_noise(quantities: Quantities, memories: Sequence[Tensor], epsilon: float, seed: int) -> RowNoise:
    """Measures the noise by moving all inputs along one random direction.

    Args:
        quantities: runs the function.
        memories: what is moved.
        epsilon: machine epsilon of the precision of the function.
        seed: of the direction.
    """
    direction, at_zero = RandomDirection(memories, seed), quantities()
    close = epsilon ** (2 / 3)
    values = _along(direction, quantities, POINTS, close, 0.0)
    far = _along(direction, quantities, POINTS_FAR, max(SPACING_OF_STAIRS, close), FAR)
    size = np.abs(np.nan_to_num(at_zero, posinf=0.0, neginf=0.0))
    typical = float(np.sqrt(np.mean(size**2))) if len(size) else 0.0
    rounded = epsilon / 2 * np.maximum(size, LEAST * (typical or 1.0))
    still = np.where(np.ptp(values, axis=0) == 0, epsilon * np.maximum(size, typical), 0.0)
    sigma = np.maximum(np.maximum(_each(values), rounded), still)
    grown = _each(far) / sigma if len(size) else np.zeros(0)
    growth = float(np.max(grown, initial=0.0))
    return RowNoise(at_zero, sigma, growth / FAR if growth > GROWS else 0.0, epsilon)


def _along(direction: RandomDirection, quantities: Quantities, points: int, spacing: float, start: float) -> Floats:
    """The quantities at equally spaced points, shape (points, M)."""
    values = []
    with direction.at(start):
        for point in range(1, points + 1):
            direction.move(start + point * spacing)
            values.append(quantities())
    return np.array(values)


def _each(values: Floats) -> Floats:
    """The noise of each quantity, 0 where it cannot be measured."""
    with np.errstate(all="ignore"):
        found = np.array([measured_noise(column) for column in values.T])
    return np.asarray(np.nan_to_num(found, posinf=0.0), dtype=np.float64)
