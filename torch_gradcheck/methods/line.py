"""J along a random direction through some parameters, at points that the ranks that share a check divide up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.processes.team import Team


class Line:
    """J along a direction.

    Args:
        objective: J.
        direction: makes the direction from θ, when it is first needed.
        positions: of the parameters in θ that it moves.
        team: the ranks that share the evaluations.
    """

    def __init__(
        self, objective: Objective, direction: Callable[[], RandomDirection], positions: Sequence[int], team: Team
    ) -> None:
        self._objective, self._direction, self._team = objective, direction, team
        self._positions = tuple(positions)
        self._known: dict[float, float] = {}

    def values(self, distances: Floats) -> Floats:
        """J at these distances from θ, shape (K,)."""
        if self._known.keys() >= set(distances.tolist()):
            return np.array([self._known[distance] for distance in distances.tolist()])
        if self._team.can_share and len(distances) > 1:
            return self._split(distances, lambda: None, 0)
        return self._own(distances)

    def foresee(self, distances: Floats, meanwhile: Callable[[], object], weight: int) -> None:
        """Takes values that will be asked for while the leader does something else; only where ranks share the work.

        Args:
            distances: shape (K,).
            meanwhile: what the leader does.
            weight: about how many evaluations of J that takes as long as.
        """
        values = self._split(distances, meanwhile, weight)
        self._known = dict(zip(distances.tolist(), values.tolist(), strict=True))

    def _own(self, distances: Floats) -> Floats:
        if not len(distances):
            return np.empty(0)
        direction, values = self._direction(), []
        with direction.at(float(distances[0])):
            for distance in distances.tolist():
                direction.move(distance)  # and not back to θ in between: it may be millions of numbers
                values.append(self._objective.value())
        return np.array(values)

    def _split(self, distances: Floats, meanwhile: Callable[[], object], weight: int) -> Floats:
        """The values, by ranks that each take neighbouring points; fewer by the leader, who has `weight` more to do."""
        size = self._team.size
        own = max(0, (len(distances) + weight) // size - weight)
        mine, *others = np.split(distances, own + (len(distances) - own) * np.arange(size - 1) // max(size - 1, 1))
        found: list[Floats] = []

        def work() -> None:
            meanwhile()
            found.append(self._own(mine))

        shares = [None, *[Points(self._positions, each) for each in others]]
        for answer in self._team.shared(values_at, shares, meanwhile=work)[1:]:
            values, evaluations = answer
            found.append(values)
            self._objective.count(evaluations)
        return np.concatenate(found)


class Points(NamedTuple):
    """A share: at which distances, along the direction through the parameters at which positions."""

    positions: tuple[int, ...]
    distances: Floats


class HasLines(Protocol):
    """What each rank has of a check."""

    @property
    def evaluations(self) -> int:
        """How often J was evaluated."""
        ...

    def line(self, positions: Sequence[int]) -> Line:
        """J along the direction through these parameters."""
        ...


def values_at(state: HasLines, points: Points | None) -> tuple[Floats, int] | None:
    """The values of one rank's share, and how many evaluations they took; None for the leader, who has none."""
    if points is None:
        return None
    before = state.evaluations
    return state.line(points.positions).values(points.distances), state.evaluations - before
