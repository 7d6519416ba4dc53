"""Samples of J split over the ranks that share a check, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.processes.team import Team

FEWEST = 8
"""Samples a rank from which on asking the others pays."""


class Evaluator(Protocol):
    """What each rank has of a check: an engine of its own, and the count of its evaluations."""

    @property
    def engine(self) -> Engine:
        """The engine of this rank."""
        ...

    @property
    def evaluations(self) -> int:
        """How often J was evaluated."""
        ...


def can_be_split(team: Team, steps: Floats) -> bool:
    """Whether so many samples are to be split over the ranks."""
    return team.can_share and len(steps) >= FEWEST * team.size


def split_samples(
    team: Team, parameter: int, coordinates: Indices, steps: Floats, counted: Callable[[int], None]
) -> Samples:
    """What `Engine.sample` gives, each coordinate by the engine of one rank: its samples share that rank's rounding.

    Args:
        team: the ranks.
        parameter: as in `Engine.sample`.
        coordinates: likewise.
        steps: likewise.
        counted: called with the number of evaluations that other ranks have made.
    """
    distinct, which = np.unique(coordinates, return_inverse=True)
    rank_of = which * team.size // len(distinct)
    places = [np.flatnonzero(rank_of == rank) for rank in range(team.size)]
    answers = team.shared(sampled, [(parameter, coordinates[at], steps[at]) for at in places])
    taken, values = np.empty(len(steps)), np.empty(len(steps))
    for rank, (at, (samples, evaluations)) in enumerate(zip(places, answers, strict=True)):
        taken[at], values[at] = samples
        counted(0 if rank == team.rank else evaluations)
    return Samples(taken, values)


def sampled(state: Evaluator, share: tuple[int, Indices, Floats]) -> tuple[Samples, int]:
    """The samples of one rank's share, and how many evaluations of J they took."""
    before = state.evaluations
    parameter, coordinates, steps = share
    if not len(steps):
        return Samples(steps, steps), 0
    samples = state.engine.sample(parameter, coordinates, steps)
    return samples, state.evaluations - before
