"""Samples of J split over the ranks that share a check, in rounds that are short enough to hear of each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.processes.team import Team

FEWEST = 4
"""Samples a rank from which on the others are asked while nobody knows yet how long one takes."""

WORTHWHILE = 0.003
"""Seconds of work from which on asking the others pays: the messages of a round take 1 to 2 ms of each rank."""

LONGER = 4.0
"""How many times longer than estimated from the record of J a sample may well take; ten times was seen."""

ROUND = 1.0
"""Seconds of every rank's share of a round. A rank that fails is not heard of before the others have done theirs."""

FIRST_ROUND = 8
"""Samples a rank in the first round, where nobody knows yet how long one takes."""

Point = tuple[int, float] | None
"""The k-th random point at a relative distance from θ, by (k, distance); None for θ itself."""


class RankEngine(Engine, Protocol):
    """What a rank evaluates J with, see `SelectedEngine`."""

    @property
    def eager(self) -> Engine:
        """J itself."""
        ...

    def zero_of(self, parameter: int) -> float | None:
        """J(θ) as the engine of this parameter computes it; None where that is J itself."""
        ...


class Evaluator(Protocol):
    """What each rank has of a check."""

    @property
    def engine(self) -> RankEngine:
        """The engine of this rank."""
        ...

    @property
    def evaluations(self) -> int:
        """How often J was evaluated."""
        ...

    def near(self, k: int, distance: float) -> AbstractContextManager[object]:
        """A block in which the parameters hold the k-th random point at this distance from θ."""
        ...


class Wanted(NamedTuple):
    """Samples of one parameter: all that is wanted, or a share of it.

    Attributes:
        parameter, coordinates, steps: as in `Engine.sample`.
        is_eager: whether they are to be J's own.
        point: what J is sampled around.
    """

    parameter: int
    coordinates: Indices
    steps: Floats
    is_eager: bool = False
    point: Point = None

    @property
    def kind(self) -> tuple[int, bool]:
        """What samples that take equally long have in common."""
        return self.parameter, self.is_eager

    def at(self, which: Indices) -> Wanted:
        """Those at some positions."""
        return self._replace(coordinates=self.coordinates[which], steps=self.steps[which])


class Answer(NamedTuple):
    """What a rank has found of its share.

    Attributes:
        samples: one for each that was wanted.
        evaluations: how many of J they took.
        zero: J(θ) with the rounding of the samples; None where they are J's own.
    """

    samples: Samples
    evaluations: int
    zero: float | None


class SharedSampling:
    """Takes samples of J on all ranks.

    Those of one coordinate are neighbours, so that as a rule one rank takes them all.

    Args:
        team: the ranks.
        counted: called with the number of evaluations that other ranks have made.
    """

    def __init__(self, team: Team, counted: Callable[[int], None]) -> None:
        self._team, self._counted = team, counted
        self._pace: dict[tuple[int, bool], float] = {}  # seconds a sample, as measured

    def pays(self, samples: int, seconds_each: float | None) -> bool:
        """Whether so many samples are to be split.

        Args:
            samples: how many.
            seconds_each: as estimated from a record of J, never measured, so that the same call is split in the same
                way; None where each is an evaluation of J, which has the same value wherever it is made.
        """
        if not self._team.can_share or samples < self._team.size:
            return False
        seconds = self._slowest if seconds_each is None else seconds_each
        return samples >= FEWEST * self._team.size if seconds is None else samples * seconds > WORTHWHILE

    @property
    def _slowest(self) -> float | None:
        """The largest number of seconds that a sample of any kind took; None where none has been measured."""
        return max(self._pace.values(), default=None)

    def sample(self, wanted: Wanted, seconds_each: float | None) -> Samples:
        """What `Engine.sample` gives; arguments as above."""
        taken, values = np.empty(len(wanted.steps)), np.empty(len(wanted.steps))
        rest = np.argsort(wanted.coordinates, kind="stable")
        while len(rest):
            size = self._team.size * self._of_a_round(wanted, seconds_each)
            places, rest = rest[:size], rest[size:]
            began = perf_counter()
            taken[places], values[places] = self._round(wanted, places)
            if seconds_each is None:
                self._pace[wanted.kind] = (perf_counter() - began) * self._team.size / len(places)
        return Samples(taken, values)

    def _of_a_round(self, wanted: Wanted, seconds_each: float | None) -> int:
        """How many samples a rank takes in the next round."""
        each = self._pace.get(wanted.kind, self._slowest) if seconds_each is None else LONGER * seconds_each
        return FIRST_ROUND if each is None else max(1, int(ROUND / max(each, 1e-9)))

    def _round(self, wanted: Wanted, places: Indices) -> Samples:
        """The samples at these places, an equal share by each rank."""
        taken, values = np.empty(len(wanted.steps)), np.empty(len(wanted.steps))
        shares = np.array_split(places, self._team.size)
        answers: list[Answer] = self._team.shared(sampled, [wanted.at(share) for share in shares])
        for rank, (share, answer) in enumerate(zip(shares, answers, strict=True)):
            taken[share], values[share] = answer.samples.steps, _as_on(answers[0], answer)
            self._counted(0 if rank == self._team.rank else answer.evaluations)
        return Samples(taken[places], values[places])


def _as_on(first: Answer, answer: Answer) -> Floats:
    """The values of an answer with the rounding of the first rank's J(θ), where the engine of a rank is another one."""
    if first.zero is None or answer.zero is None or first.zero == answer.zero:
        return answer.samples.values
    return np.asarray(answer.samples.values + (first.zero - answer.zero))


def sampled(state: Evaluator, wanted: Wanted) -> Answer:
    """The samples of one rank's share."""
    before = state.evaluations
    engine = state.engine
    if not len(wanted.steps):
        return Answer(Samples(wanted.steps, wanted.steps), 0, None)
    with nullcontext() if wanted.point is None else state.near(*wanted.point):
        by = engine.eager if wanted.is_eager else engine
        samples = by.sample(wanted.parameter, wanted.coordinates, wanted.steps)
    return Answer(samples, state.evaluations - before, None if wanted.is_eager else engine.zero_of(wanted.parameter))


class SharedEagerEngine:
    """J itself, at θ or at a random point near it, on all ranks; an engine of one parameter after the other.

    Args:
        state: what this rank has of the check.
        sampling: over the ranks.
        point: what J is sampled around.
    """

    def __init__(self, state: Evaluator, sampling: SharedSampling, point: Point = None) -> None:
        self._state, self._sampling, self._point = state, sampling, point

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        wanted = Wanted(parameter, coordinates, steps, is_eager=True, point=self._point)
        if self._sampling.pays(len(steps), None):
            return self._sampling.sample(wanted, None)
        return sampled(self._state, wanted).samples
