"""Samples of J split over the ranks that share a check, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.processes.team import Team

FEWEST = 8
"""Samples a rank from which on asking the others pays."""


class Nearby(NamedTuple):
    """A point near θ: so far along the direction of that number."""

    direction: int
    distance: float


class Way(NamedTuple):
    """How J is sampled: by the engine in use, or by the eager one, and this at θ or at a point near it."""

    by_eager: bool = False
    nearby: Nearby | None = None


BY_SELECTED = Way()


class Share(NamedTuple):
    """What one rank samples, see `Engine.sample`."""

    parameter: int
    coordinates: Indices
    steps: Floats
    way: Way


class _Engine(Engine, Protocol):
    eager: EagerEngine


class _Direction(Protocol):
    def at(self, distance: float) -> AbstractContextManager[object]:
        """A block in which the parameters are so far along this direction."""
        ...


class Evaluator(Protocol):
    """What each rank has of a check: an engine of its own, and the count of its evaluations."""

    @property
    def engine(self) -> _Engine:
        """The engine of this rank."""
        ...

    @property
    def evaluations(self) -> int:
        """How often J was evaluated."""
        ...

    def direction(self, k: int) -> _Direction:
        """The k-th random direction through θ, the same on every rank."""
        ...


class SharedEagerEngine:
    """The eager engine of a check, whose samples its ranks share, at θ or at a point near it.

    Args:
        state: what this rank has of the check.
        team: the ranks.
        counted: called with the number of evaluations that other ranks have made.
        nearby: the point; None: θ.
    """

    def __init__(
        self, state: Evaluator, team: Team, counted: Callable[[int], None], nearby: Nearby | None = None
    ) -> None:
        self._state, self._team, self._counted = state, team, counted
        self._way = Way(by_eager=True, nearby=nearby)

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        if can_be_split(self._team, steps):
            return split_samples(self._team, parameter, coordinates, steps, self._counted, self._way)
        return _sampled(self._state, Share(parameter, coordinates, steps, self._way))


def can_be_split(team: Team, steps: Floats) -> bool:
    """Whether so many samples are to be split over the ranks."""
    return team.can_share and len(steps) >= FEWEST * team.size


def split_samples(
    team: Team,
    parameter: int,
    coordinates: Indices,
    steps: Floats,
    counted: Callable[[int], None],
    way: Way = BY_SELECTED,
) -> Samples:
    """What `Engine.sample` gives, each coordinate by the engine of one rank: its samples share that rank's rounding.

    Args:
        team: the ranks.
        parameter: as in `Engine.sample`.
        coordinates: likewise.
        steps: likewise.
        counted: called with the number of evaluations that other ranks have made.
        way: how J is sampled.
    """
    distinct, which = np.unique(coordinates, return_inverse=True)
    rank_of = which * team.size // len(distinct)
    places = [np.flatnonzero(rank_of == rank) for rank in range(team.size)]
    answers = team.shared(sampled, [Share(parameter, coordinates[at], steps[at], way) for at in places])
    taken, values = np.empty(len(steps)), np.empty(len(steps))
    for rank, (at, (samples, evaluations)) in enumerate(zip(places, answers, strict=True)):
        taken[at], values[at] = samples
        counted(0 if rank == team.rank else evaluations)
    return Samples(taken, values)


def sampled(state: Evaluator, share: Share) -> tuple[Samples, int]:
    """The samples of one rank's share, and how many evaluations of J they took."""
    before = state.evaluations
    if not len(share.steps):
        return Samples(share.steps, share.steps), 0
    samples = _sampled(state, share)
    return samples, state.evaluations - before


def _sampled(state: Evaluator, share: Share) -> Samples:
    by_eager, nearby = share.way
    engine: Engine = state.engine.eager if by_eager else state.engine
    if nearby is None:
        return engine.sample(share.parameter, share.coordinates, share.steps)
    with state.direction(nearby.direction).at(nearby.distance):
        return engine.sample(share.parameter, share.coordinates, share.steps)
