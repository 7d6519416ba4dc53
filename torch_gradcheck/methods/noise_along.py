"""The noise of J along each parameter, where J is far noisier along all of them together than rounding makes it.

A few parameters may be the reason: along a bias before the norm of a vector that is almost 0, J is so steep that it
curves between the points by which noise is measured. The others are not to be judged by that noise. It is looked for in
halves of θ, and in halves of these, and measured again along all parameters that it does not belong to.

That is told from rounding, which no one knows to belong to a parameter, by points that are closer: there a steep J is
smooth. Where a part of J is rounded to a lower precision out of sight, J climbs stairs along every parameter before
that part, whether or not the points of a measurement fall on several of them: such noise is shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_gradcheck.methods.line import Line
from torch_gradcheck.methods.noise import NoiseNear, is_steep_near, noise_near, sigma_near, stairs_near
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon

LOUD = 1024.0
"""More noise than this many machine epsilons of J, or of the output that it is made of, is not from rounding alone.

In float64, at J = 1, that is 2e-13. Models as they come have at most 20 epsilons.
"""

WIDER = (1e-9, 3e-8)
"""Relative spacings of points between which J must not climb stairs along the others, beside that of the noise at θ."""

MOST_MEASURED = 64
"""Along how many groups of parameters noise is measured at most, by nine evaluations of J each."""

Lines = Callable[[Sequence[int]], Line]
"""Maps positions in θ to J along a random direction through these parameters."""


def quieter_noise(objective: Objective, theta: Theta, together: NoiseNear, line: Lines) -> dict[int, NoiseNear]:
    """The noise of J along those checked parameters that J is not loud along, by position; mostly there is no need.

    Empty where the noise along all checked parameters is from rounding, and where it may belong to all of them.

    Args:
        objective: J.
        theta: its parameters.
        together: the noise along a direction through all checked parameters.
        line: gives J along a direction through some of them.
    """
    loud = LOUD * epsilon(objective.dtype) * max(abs(objective.loss), objective.largest_output)
    if together.of_known_operations.sigma <= loud or together.is_ambiguous or len(theta.checked) == 1:
        return {}

    def is_loud(group: Sequence[int]) -> bool:
        along = line(group)
        noises = [sigma_near(objective, along), *[stairs_near(along, spacing) for spacing in WIDER]]
        return max(noises) > loud

    belongs_to = _Search(is_loud).loud(theta.checked)
    others = [position for position in theta.checked if position not in belongs_to]
    if not others or is_loud(others):
        return {}
    along = line(belongs_to)
    if not is_steep_near(objective, along, sigma_near(objective, along), loud):
        return {}
    noise = noise_near(objective, theta, line(others), others)
    return {} if noise.is_ambiguous else dict.fromkeys(others, noise)


class _Search:
    """Finds the loud parameters by halving.

    Args:
        is_loud: whether noise along a group of parameters is loud.
    """

    def __init__(self, is_loud: Callable[[Sequence[int]], bool]) -> None:
        self._is_loud, self._measured = is_loud, 0

    def loud(self, group: Sequence[int]) -> list[int]:
        """The loud parameters of a group that is loud as a whole; all of it where too much was measured already."""
        if len(group) == 1 or self._measured >= MOST_MEASURED:
            return list(group)
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        if not self._measures_loud(first):
            return self.loud(second)
        return self.loud(first) + (self.loud(second) if self._measures_loud(second) else [])

    def _measures_loud(self, group: Sequence[int]) -> bool:
        self._measured += 1
        return self._is_loud(group)
