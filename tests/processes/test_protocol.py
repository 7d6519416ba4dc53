"""The protocol of a team, between ranks that are threads: shares, orders, failures, and one end for all."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes.in_memory import run_ranks
from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines import shared
from torch_gradcheck.engines.shared import SharedSampling, Wanted
from torch_gradcheck.errors import InvalidRequestError, ProcessGroupError, UnequalRanksError
from torch_gradcheck.processes import team as team_module
from torch_gradcheck.processes.messages import read
from torch_gradcheck.processes.team import Team


class FaultError(Exception):
    """Planted."""


class Log:
    """What a rank works on: it fails at some of the tasks."""

    def __init__(self, faults: set[tuple[int, int]], rank: int) -> None:
        self.rank, self.faults, self.done = rank, faults, 0

    def work(self) -> None:
        self.done += 1
        if (self.rank, self.done) in self.faults:
            raise FaultError(f"rank {self.rank}, task {self.done}")


def squared(state: Log, share: int) -> int:
    state.work()
    return share * share


def noted(state: Log, share: int) -> None:
    state.work()


programs = st.lists(st.tuples(st.sampled_from(["share", "order", "long"]), st.integers(0, 9)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 4),
    program=programs,
    faults=st.sets(st.tuples(st.integers(0, 3), st.integers(1, 8)), max_size=2),
    before=st.integers(-3, 3),
    after=st.integers(-3, 3),
)
def test_all_ranks_end_alike(
    size: int, program: list[tuple[str, int]], faults: set[tuple[int, int]], before: int, after: int
) -> None:
    def run(team: Team, rank: int) -> Any:
        state = Log(faults, rank)

        def work() -> list[Any]:
            found: list[Any] = []
            for kind, number in program:
                if kind == "order":
                    team.order(noted, number)
                else:
                    shares: list[Any] = [number + k for k in range(size)]
                    found.append(team.shared(squared, shares) if kind == "share" else team.shared(echoed, long(shares)))
            return found

        with team.together():
            if rank == before:
                raise FaultError("before")
            result = team.lead(state, work)
            if rank == after:
                raise FaultError("after")
            return result

    outcomes = run_ranks(size, run)
    failed = [isinstance(each, BaseException) for each in outcomes]
    assert all(failed) or not any(failed)
    assert all(isinstance(each, FaultError) for each, bad in zip(outcomes, failed, strict=True) if bad)
    if 0 <= before < size:
        assert {str(each) for each in outcomes} == {"before"}
    tasks = {rank: sum(rank > 0 or kind != "order" for kind, _ in program) for rank in range(size)}
    has_fault = any(rank < size and number <= tasks[rank] for rank, number in faults)
    assert any(failed) == (has_fault or 0 <= before < size or 0 <= after < size)
    if not any(failed):
        assert all(each == outcomes[0] for each in outcomes)
        assert len(outcomes[0]) == sum(kind != "order" for kind, _ in program)


def long(shares: list[int]) -> list[Any]:
    return [[share] * 2000 for share in shares]


def echoed(state: Log, share: list[int]) -> int:
    state.work()
    return sum(share)


def test_a_lambda_cannot_be_shared_and_nobody_waits_for_it() -> None:
    def run(team: Team, rank: int) -> Any:
        with team.together():
            return team.lead(rank, lambda: team.shared(lambda *_: 0, [0, 1]))

    one, other = run_ranks(2, run)
    assert isinstance(one, (AttributeError, pickle.PicklingError))
    assert type(one) is type(other) or isinstance(other, ProcessGroupError)


def test_a_result_that_cannot_be_sent_ends_all_ranks() -> None:
    def run(team: Team, rank: int) -> Any:
        with team.together():
            return team.lead(rank, lambda: (x for x in range(3)))

    assert all(isinstance(each, TypeError) for each in run_ranks(2, run))


def unsendable(state: object, share: object) -> Any:
    return (x for x in range(3))


def test_an_answer_that_cannot_be_sent_is_a_failure() -> None:
    def run(team: Team, rank: int) -> Any:
        with team.together():
            return team.lead(rank, lambda: team.shared(unsendable, [0, 1]))

    assert all(isinstance(each, TypeError) for each in run_ranks(2, run))


def test_a_task_that_a_rank_does_not_know_is_a_failure_of_its_own() -> None:
    message = read(bytes([0]) + bytes(8) + b"cnowhere\nnothing\n.", rank=1)
    assert not isinstance(message, team_module.Ended)
    with pytest.raises(ProcessGroupError, match="cannot be read here"):
        message.task(None, message.on(1))


def test_a_failure_that_the_leader_swallows_ends_the_check_all_the_same() -> None:
    def run(team: Team, rank: int) -> Any:
        state = Log({(1, 1)}, rank)

        def work() -> str:
            with contextlib.suppress(FaultError):
                team.shared(squared, [1, 2])
            return "well"

        with team.together():
            return team.lead(state, work)

    assert [str(each) for each in run_ranks(2, run)] == ["rank 1, task 1"] * 2


def test_one_lead_after_another_and_inside_of_another() -> None:
    def run(team: Team, rank: int) -> Any:
        with team.together():
            first = team.lead(Log(set(), rank), lambda: team.lead("inner", lambda: team.shared(squared, [1, 2])))
            second = team.lead(Log(set(), rank), lambda: team.shared(squared, [3, 4]))
            return first, second, team.exchanged(rank)

    assert run_ranks(2, run) == [([1, 4], [9, 16], [0, 1])] * 2


# Samples --------------------------------------------------------------------------------------------------------------


class Line:
    """J = coordinate + step, evaluated by an engine whose J(θ) is off by `rounding`."""

    def __init__(self, rounding: float = 0.0) -> None:
        self.evaluations, self.rounding = 0, rounding

    @property
    def engine(self) -> Line:
        return self

    @property
    def eager(self) -> Line:
        return self

    def zero_of(self, parameter: int) -> float | None:
        return self.rounding

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        self.evaluations += len(steps)
        return Samples(steps.copy(), coordinates + steps + self.rounding)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 4),
    coordinates=st.lists(st.integers(0, 5), min_size=4, max_size=40),
    by_record=st.booleans(),
    of_a_round=st.sampled_from([1e-9, 1e-3, 1.0]),
)
def test_split_samples_are_those_of_one_rank(
    size: int, coordinates: list[int], by_record: bool, of_a_round: float
) -> None:
    which, steps = np.array(coordinates), np.linspace(-1, 1, len(coordinates))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "ROUND", of_a_round)

        def run(team: Team, rank: int) -> Any:
            counted: list[int] = []
            sampling, state = SharedSampling(team, counted.append), Line(rounding=rank * 1e-13)
            seconds = 1e-3 if by_record else None

            def work() -> tuple[Samples, int]:
                return sampling.sample(Wanted(0, which, steps), seconds), state.evaluations + sum(counted)

            with team.together():
                return team.lead(state, work)

        for samples, evaluations in run_ranks(size, run):
            np.testing.assert_array_equal(samples.steps, steps)
            np.testing.assert_allclose(samples.values, which + steps, atol=1e-15 * 8)
            assert evaluations == len(steps)


@pytest.mark.parametrize("on_leader", [True, False], ids=["the leader", "another one"])
def test_a_rank_that_has_ended_is_not_waited_for_by_one_that_goes_on(on_leader: bool) -> None:
    def program(team: Team, rank: int) -> None:
        with team.together():
            if (rank == 0) is not on_leader:
                team.lead(None, lambda: None)

    for ending in run_ranks(2, program):
        assert isinstance(ending, UnequalRanksError)
        assert "do not run the same check" in str(ending)


def test_a_check_inside_of_what_a_rank_leads_is_refused_and_not_waited_for() -> None:
    def inner(team: Team) -> None:
        with team.together():
            team.meet()

    def program(team: Team, rank: int) -> None:
        with team.together():
            team.lead(None, lambda: inner(team))

    for ending in run_ranks(2, program):
        assert isinstance(ending, InvalidRequestError)
        assert "inside of one that is running" in str(ending)


def test_a_check_after_a_lead_is_not_refused() -> None:
    def program(team: Team, rank: int) -> Any:
        for _ in range(2):
            with team.together():
                found = team.lead(None, lambda: 3)
        return found

    assert run_ranks(2, program) == [3, 3]
