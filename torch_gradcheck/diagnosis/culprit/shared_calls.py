"""Calls that are run alone, split over the ranks that share a check: each has recorded J for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch_gradcheck.diagnosis.culprit.footing import Footing, Measures
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone, Contribution
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.processes.team import Team

KEPT = "footing"
"""The key in `Problem.kept` of what a rank that does not lead has recorded."""

Found = Contribution | CannotBeRunAlone
"""The contribution of a call, or why it cannot be run alone."""


class Place(NamedTuple):
    """A `WrongCoordinate` for other ranks: the position of its parameter in θ, and its numbers."""

    position: int
    coordinate: int
    analytic: float
    numeric: float
    error_bar: float
    unit: float


class Calls(NamedTuple):
    """A share: the numbers of the calls, how many the run has, and the number of the wrong coordinate to follow."""

    numbers: Sequence[int]
    total: int
    coordinate: int


class SharedCalls:
    """The ranks that run calls alone; those that do not lead begin to record J when this is made.

    Args:
        problem: J and θ.
        wrong: the coordinates that are followed.
        measures: what all ranks record by.
    """

    def __init__(self, problem: Problem, wrong: Sequence[WrongCoordinate], measures: Measures) -> None:
        self._team: Team = problem.team
        self._wrong = wrong
        if self._team.can_share:
            position = {id(entry): k for k, entry in enumerate(problem.theta)}
            places = [Place(position[id(each.entry)], *_numbers(each)) for each in wrong]
            self._team.order(record, (places, measures))

    def finish(self) -> None:
        """Has the other ranks let go of what they have recorded."""
        if self._team.can_share:
            self._team.order(record, None)

    def contributions(
        self,
        calls: Sequence[RecordedCall],
        count: int,
        wrong: WrongCoordinate,
        runner: CallRunner,
        own: Callable[[RecordedCall], Found],
    ) -> list[Found]:
        """What each of some calls contributes.

        Args:
            calls: of the recorded run.
            count: how many there are in that run.
            wrong: the coordinate that is followed.
            runner: of this rank; takes in how often calls were run by others.
            own: runs a call alone on this rank.
        """
        hands = _dealt(calls, self._team.size) if self._team.can_share else [list(calls)]
        found: dict[RecordedCall, Found] = {}

        def work() -> None:
            found.update({call: own(call) for call in hands[LEADER]})

        if not any(hands[1:]):
            work()
        else:
            at = next(k for k, each in enumerate(self._wrong) if each is wrong)
            shares = [None, *[Calls([call.number for call in hand], count, at) for hand in hands[1:]]]
            for hand, answer in zip(hands[1:], self._team.shared(contributions_of, shares, work)[1:], strict=True):
                if answer is not None:
                    found.update(zip(hand, answer.found, strict=True))
                    runner.runs += answer.runs
        return [found[call] if call in found else own(call) for call in calls]


class Answer(NamedTuple):
    """What a rank found of its calls, and how many runs of them it took."""

    found: list[Found]
    runs: int


def record(problem: Problem, asked: tuple[Sequence[Place], Measures] | None) -> None:
    """Records J on a rank that does not lead; lets go of what it has recorded where nothing is asked."""
    problem.kept.pop(KEPT, None)
    if asked is None:
        return
    places, measures = asked
    wrong = [WrongCoordinate(problem.theta[each.position], *each[1:]) for each in places]
    try:
        problem.kept[KEPT] = Footing(problem.objective, wrong, measures)
    except Exception:  # of J, which is recorded: the leader has that as well, and says what comes of it
        return


def contributions_of(problem: Problem, share: Calls | None) -> Answer | None:
    """The answer to a share; None without one, or where another run of J was recorded on this rank."""
    footing: Footing | None = problem.kept.get(KEPT)
    if share is None or footing is None or len(footing.run.calls) != share.total:
        return None
    tangents, wrong = footing.tangents[share.coordinate], footing.wrong[share.coordinate]
    if tangents is None:
        return None
    before, runner, calls = footing.runner.runs, footing.runner, [footing.run.calls[n] for n in share.numbers]
    found = [contribution_or_reason(runner, call, tangents[call], wrong) for call in calls]
    return Answer(found, runner.runs - before)


def contribution_or_reason(runner: CallRunner, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> Found:
    """The contribution of a call along tangents of its inputs, or why there is none."""
    try:
        return runner.contribution(call, tangents, wrong)
    except CannotBeRunAlone as reason:
        return CannotBeRunAlone(str(reason))  # without its frames, and what they hold


def _numbers(wrong: WrongCoordinate) -> tuple[int, float, float, float, float]:
    return wrong.coordinate, wrong.analytic, wrong.numeric, wrong.error_bar, wrong.unit


def _dealt(calls: Sequence[RecordedCall], size: int) -> list[list[RecordedCall]]:
    """The calls of each rank, so that all have about as many inside; the leader takes those that a backward made."""
    hands, inside = [list[RecordedCall]() for _ in range(size)], [0] * size
    for call in calls:
        runs = call.number >= 0 and call.receives
        rank = inside.index(min(inside)) if runs else LEADER
        hands[rank].append(call)
        inside[rank] += 1 + len(list(call.inside())) if runs else 0
    return hands
