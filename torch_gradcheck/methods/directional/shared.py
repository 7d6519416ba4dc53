"""Values of J along directions split over the ranks that share a check; both steps of a pair are taken by one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.methods.directional.names import Name
from torch_gradcheck.processes.team import Team


class Share(NamedTuple):
    """What one rank evaluates.

    Attributes:
        names: of the directions.
        which: shape (K,), the direction of every sample, among these.
        steps: shape (K,).
        by_substitute: whether the engine's substitute of J is evaluated, instead of J itself.
    """

    names: Sequence[Name]
    which: Indices
    steps: Floats
    by_substitute: bool


class Evaluates(Protocol):
    """What each rank has: directions through its own θ."""

    def of_share(self, share: Share, substitute: Callable[[], float] | None) -> Floats:
        """J at every sample of a share."""
        ...


class _Engine(Protocol):
    @property
    def value_substitute(self) -> Callable[[], float] | None:
        """Evaluates a substitute of J at what the parameters hold now."""
        ...


class Evaluator(Protocol):
    """What each rank has of a check."""

    @property
    def directions(self) -> Evaluates:
        """Directions through its θ."""
        ...

    @property
    def engine(self) -> _Engine:
        """The engine of this rank."""
        ...

    @property
    def evaluations(self) -> int:
        """How often J was evaluated."""
        ...


def pairs_of(which: Indices, steps: Floats) -> list[tuple[int, float]]:
    """Each direction and size of a step along it, once, in order: the samples of one are not parted."""
    return sorted(set(zip(which.tolist(), np.abs(steps).tolist(), strict=True)))


def can_be_split(team: Team, which: Indices, steps: Floats) -> bool:
    """Whether these samples are to be split over the ranks: there is more than one pair of them."""
    return team.can_share and len(pairs_of(which, steps)) > 1


def ranks_of(which: Indices, steps: Floats, size: int) -> Indices:
    """The rank that takes each sample, shape (K,): neighbouring pairs go together, and the leader has the fewest."""
    pairs = pairs_of(which, steps)
    rank_of = {pair: size - 1 - k * size // len(pairs) for k, pair in enumerate(reversed(pairs))}
    return np.array([rank_of[pair] for pair in zip(which.tolist(), np.abs(steps).tolist(), strict=True)])


def values_of(state: Evaluator, share: Share | None) -> tuple[Floats, int] | None:
    """The values of one rank's share, and how many evaluations they took; None for the leader, who has none."""
    if share is None:
        return None
    before = state.evaluations
    substitute = state.engine.value_substitute if share.by_substitute else None
    return state.directions.of_share(share, substitute), state.evaluations - before
