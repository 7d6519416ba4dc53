"""The noise of J near θ and away from it, measured from values of J along one random direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import ALIKE, POINTS, Noise, measured_noise, noise_of_stairs
from torch_gradcheck.methods.line import Line
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta, flat_values
from torch_gradcheck.precision.dtypes import epsilon

FAR = 1e-2
"""Relative distance from θ at which noise is measured a second time; the steps of a ladder may be this large."""

SPACING_OF_STAIRS = 1e-8
"""Relative spacing of points between which a J that is rounded on the way climbs stairs.

The plateaus of a J that adds and subtracts a number near 1e8 are about 1e-8 wide; those of one entry that is computed
in float32 are 1e-7, and a layer has many entries.
"""

LEAST_STAIR, LARGEST_STAIR = 2e-14, 1e-5
"""The height of stairs relative to J or to its parts: above any rounding of J itself, and not that of J's own waves."""

RARE_STAIRS = 64.0
"""The stairs at θ may be this many times lower than those away from it: between few points there may be few of them.

A noise that grows with the distance is a million times lower at θ. At a singularity it is larger than away from it.
"""

POINTS_FAR = 7
"""Values of J for that second measurement, of which only the order of magnitude is used."""

GROWS = 4.0
"""Noise counts as growing with the distance where it is more than this many times larger there than at θ."""


CLOSER = (16.0, 256.0, 4096.0)
"""How many times closer the points may be between which a steep J is smooth."""

CARRIES = 8.0
"""The slope between close points carries a steep J at least this share, an eighth, of what it scatters."""


class NoiseNear(NamedTuple):
    """The noise of J near θ, for either of two cases.

    Attributes:
        of_known_operations: all operations are known to compute in the precision of the check.
        of_hidden_ones: a part of J may be rounded to a lower precision out of sight. It climbs stairs then: to small
            steps J stands still, free of noise, and its derivative is that of the other parts.
    """

    of_known_operations: Noise
    of_hidden_ones: Noise

    @property
    def is_ambiguous(self) -> bool:
        """Whether the noise depends on the case."""
        return self.of_known_operations != self.of_hidden_ones


def noise_near(objective: Objective, theta: Theta, line: Line, positions: Sequence[int]) -> NoiseNear:
    """The noise of J, from 16 evaluations of it; from 25 where it is larger away from θ.

    Args:
        objective: J.
        theta: its parameters.
        line: J along a direction in which some of them are moved, relative to their sizes.
        positions: of those in θ.
    """
    sigma, far = sigma_near(objective, line), _far(objective, line)
    usual = Noise(objective.loss, sigma, epsilon(objective.dtype))
    if not GROWS * sigma < far < np.inf:
        return NoiseNear(usual, usual)
    # The direction moves entries by their size, a step of 1 those below 1 by 1.
    growing = usual._replace(growth=far / FAR / min(1.0, _typical_size(theta, positions)))
    # 0 where the noise is known in their place
    stairs = 0.0 if _spacing(objective) > SPACING_OF_STAIRS else stairs_near(line, SPACING_OF_STAIRS)
    size = abs(objective.loss)
    least, largest = max(GROWS * sigma, LEAST_STAIR * size), LARGEST_STAIR * max(size, objective.largest_output)
    if least < stairs < largest and far / RARE_STAIRS < stairs < far * ALIKE:
        return NoiseNear(growing, usual._replace(sigma=max(stairs, far)))
    return NoiseNear(growing, growing)


def sigma_near(objective: Objective, line: Line) -> float:
    """One standard deviation of the noise at θ, from nine evaluations of J.

    Measured on one side of θ, so that a kink at θ itself is not taken for noise.
    """
    values = _along(line, POINTS, epsilon(objective.dtype) ** (2 / 3))
    if np.any(values != values[0]):
        return max(measured_noise(values), objective.spread)
    # J does not move at all. A loss that is rounded to 0, or to a constant, is not free of noise for that: the
    # quantities inside of it are rounded.
    return max(epsilon(objective.dtype) * objective.largest_output, objective.spread)


def _far(objective: Objective, line: Line) -> float:
    """The noise far from θ."""
    with np.errstate(all="ignore"):  # J may be infinite so far away
        return measured_noise(_along(line, POINTS_FAR, _spacing(objective), start=FAR))


def stairs_near(line: Line, spacing: float) -> float:
    """The height of the stairs that J climbs at θ between points of this relative spacing; 0 where it climbs none."""
    return noise_of_stairs(_along(line, POINTS, spacing))


def is_steep_near(objective: Objective, line: Line, noise: float, quiet: float) -> bool:
    """Whether J is so steep along a direction that its slope, and no rounding, is what looks like noise.

    Between points that are closer and closer a smooth J ends up as quiet as it is along others, and its slope there
    carries it as far as it was seen to scatter. A J that climbs stairs is quiet on a single one, and stands still.

    Args:
        objective: J.
        line: J along a direction, where it was found to scatter.
        noise: one standard deviation, as measured by `sigma_near`.
        quiet: a noise that is none.
    """
    usual = epsilon(objective.dtype) ** (2 / 3)
    for closer in CLOSER:
        values = _along(line, POINTS, usual / closer)
        if measured_noise(values) <= quiet:
            slope = abs(values[-1] - values[0]) / ((POINTS - 1) * usual / closer)
            return bool(noise <= CARRIES * slope * usual)
    return False


def _spacing(objective: Objective) -> float:
    """The relative spacing of points that lie on different stairs."""
    return float(max(SPACING_OF_STAIRS, epsilon(objective.dtype) ** (2 / 3)))


def _typical_size(theta: Theta, positions: Sequence[int]) -> float:
    """The root mean square of all finite entries of these parameters, 1 where all of them are 0."""
    squares, count = 0.0, 0
    for position in positions:
        values = flat_values(theta[position])
        values = values[np.isfinite(values)]
        squares, count = squares + float(np.sum(values**2)), count + len(values)
    return (squares / count) ** 0.5 if squares else 1.0


def _along(line: Line, points: int, spacing: float, *, start: float = 0.0) -> Floats:
    """J at equally spaced points from θ, beyond the one at `start`."""
    return line.values(_distances(points, spacing, start))


def _distances(points: int, spacing: float, start: float = 0.0) -> Floats:
    return np.array([start + point * spacing for point in range(1, points + 1)])


def distances_near(objective: Objective) -> Floats:
    """The distances from θ at which `noise_near` asks for J in any case."""
    near, far = epsilon(objective.dtype) ** (2 / 3), _spacing(objective)
    return np.concatenate([_distances(POINTS, near), _distances(POINTS_FAR, far, FAR)])
