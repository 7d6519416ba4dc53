"""The noise of J near θ and away from it, measured from values of J along one random direction."""

from __future__ import annotations

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.noise import POINTS, Noise, measured_noise, noise_of_stairs
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.theta import Theta, flat_values
from torch_gradcheck.precision.dtypes import epsilon

FAR = 1e-2
"""Relative distance from θ at which noise is measured a second time; the steps of a ladder may be this large."""

SPACING_OF_STAIRS = 1e-8
"""Relative spacing of points between which a J that is rounded on the way climbs stairs.

The plateaus of a J that adds and subtracts a number near 1e8 are about 1e-8 wide; those of one entry that is computed
in float32 are 1e-7, and a layer has many entries.
"""

STAIRS = 100.0
"""Differences at that spacing are stairs where they are above 100 machine epsilons of J, beyond any rounding of it."""

POINTS_FAR = 7
"""Values of J for that second measurement, of which only the order of magnitude is used."""

GROWS = 4.0
"""Noise counts as growing with the distance where it is more than this many times larger there than at θ."""


def noise_near(objective: Objective, theta: Theta, direction: RandomDirection) -> Noise:
    """The noise of J, from 23 evaluations of it.

    Args:
        objective: J.
        theta: its parameters.
        direction: along which they are moved, relative to their sizes.
    """
    sigma = _with_stairs(objective, direction, _sigma(objective, direction))
    growth = _growth(objective, theta, direction, sigma)
    return Noise(objective.loss, sigma, epsilon(objective.dtype), growth)


def _sigma(objective: Objective, direction: RandomDirection) -> float:
    """The noise at θ: measured on one side of it, so that a kink at θ itself is not taken for noise."""
    values = _along(objective, direction, POINTS, epsilon(objective.dtype) ** (2 / 3))
    if np.any(values != values[0]):
        return max(measured_noise(values), objective.spread)
    # J does not move at all. A loss that is rounded to 0, or to a constant, is not free of noise for that: the
    # quantities inside of it are rounded.
    return max(epsilon(objective.dtype) * objective.largest_output, objective.spread)


def _with_stairs(objective: Objective, direction: RandomDirection, sigma: float) -> float:
    """The noise at θ or, where that is larger, the height of stairs that J climbs.

    A part of J that is computed in float32, out of sight in a kernel, stands still over the distances at which noise is
    measured: to small steps J is free of noise, and its derivative is that of the other parts.
    """
    if epsilon(objective.dtype) ** (2 / 3) > SPACING_OF_STAIRS:
        return sigma
    stairs = noise_of_stairs(_along(objective, direction, POINTS_FAR, SPACING_OF_STAIRS))
    rounding = STAIRS * epsilon(objective.dtype) * abs(objective.loss)
    return stairs if max(GROWS * sigma, rounding) < stairs < np.inf else sigma


def _growth(objective: Objective, theta: Theta, direction: RandomDirection, sigma: float) -> float:
    """The noise per relative step, from the noise far from θ; 0 where the noise there is that at θ."""
    with np.errstate(all="ignore"):  # J may be infinite so far away
        spacing = max(SPACING_OF_STAIRS, epsilon(objective.dtype) ** (2 / 3))
        noise = measured_noise(_along(objective, direction, POINTS_FAR, spacing, start=FAR))
    if not GROWS * sigma < noise < np.inf:
        return 0.0
    # The direction moves entries by their size, a step of 1 those below 1 by 1.
    return noise / FAR / min(1.0, _typical_size(theta))


def _typical_size(theta: Theta) -> float:
    """The root mean square of all checked entries of θ, 1 where all of them are 0."""
    squares, count = 0.0, 0
    for position in theta.checked:
        values = flat_values(theta[position])
        squares, count = squares + float(np.sum(values**2)), count + len(values)
    return (squares / count) ** 0.5 if squares else 1.0


def _along(
    objective: Objective, direction: RandomDirection, points: int, spacing: float, *, start: float = 0.0
) -> Floats:
    """J at equally spaced points in a direction from θ, beyond the one at `start`."""
    values = []
    with direction.at(start):
        for point in range(1, points + 1):
            direction.move(start + point * spacing)  # and not back to θ in between: it may be millions of numbers
            values.append(objective.value())
    return np.array(values)
