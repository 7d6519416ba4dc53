"""Points near θ at which J is evaluated: along random directions, and one with all parameters moved by a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from torch_gradcheck.methods.line import Line
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.processes.team import Team


class PointsNearTheta:
    """Random directions from θ, and a point on the first of them.

    Args:
        objective: J.
        theta: its parameters.
        seed: what directions are drawn from.
    """

    def __init__(self, objective: Objective, theta: Theta, seed: int) -> None:
        self._objective, self._theta, self._seed = objective, theta, seed

    def direction(self, k: int) -> RandomDirection:
        """The k-th random direction through all checked parameters."""
        return self._through(self._theta.checked, k)

    def line(self, positions: Sequence[int], team: Team) -> Line:
        """J along a random direction through these parameters, evaluated by the ranks of a team."""
        every = tuple(positions) == tuple(self._theta.checked)
        directions = list[RandomDirection]()

        def direction() -> RandomDirection:
            if every:
                return self._first_direction
            directions[:] = directions or [self._through(positions)]
            return directions[0]

        return Line(self._objective, direction, positions, team)

    @property
    def step(self) -> float:
        """The relative step at which all parameters are moved to compare a record of J with J: 6e-6 in float64."""
        return float(epsilon(self._objective.dtype) ** (1 / 3))

    def a_step_away(self, staying: frozenset[int] = frozenset()) -> AbstractContextManager[object]:
        """The parameters, but for those at these positions of θ, moved by that step."""
        return self._first_direction.at(
            self.step, [k for k, position in enumerate(self._theta.checked) if position in staying]
        )

    @cached_property
    def value_a_step_away(self) -> float:
        """J with all parameters moved by that step."""
        with self.a_step_away():
            return self._objective.value()

    def forget_direction(self) -> None:
        """Lets go of the first direction, which has a sign of every coordinate; it is drawn anew where it is needed."""
        vars(self).pop("_first_direction", None)

    @cached_property
    def _first_direction(self) -> RandomDirection:
        return self.direction(0)

    def _through(self, positions: Sequence[int], k: int = 0) -> RandomDirection:
        """The k-th random direction through these parameters."""
        parameters = [self._theta[position].parameter for position in positions]
        at_theta = [self._objective.at_theta(parameter) for parameter in parameters]
        return RandomDirection(parameters, (self._seed + k) % 2**63, at_theta)
