"""The schedule wakes a monitor at the last call before a scheduled step and at the calls of the step only."""

from __future__ import annotations

from typing import Any

import pytest

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.schedule import NEVER, Due, Schedule


def calls_due(at: Any, every: int | None, accumulate: int, calls: int) -> dict[int, Due]:
    """What each call is for, as a monitor drives the schedule that checks every step it comes to."""
    schedule, due = Schedule(at, every, accumulate), {}
    schedule.await_step(0)
    within = 0
    for call in range(calls):
        found = schedule.called()
        if found is None:
            continue
        due[call] = found
        schedule.wake_next()
        within += found is Due.WITHIN
        if within == accumulate:
            within = 0
            schedule.await_step(schedule.target + 1)
    return due


@pytest.mark.parametrize(
    ("at", "every", "accumulate", "before", "within"),
    [
        pytest.param(0, None, 1, [], [0], id="the first step"),
        pytest.param(3, None, 1, [2], [3], id="a later step"),
        pytest.param([0, 1], None, 1, [], [0, 1], id="two in a row"),
        pytest.param((), 4, 1, [3, 7], [0, 4, 8], id="every fourth"),
        pytest.param([2], None, 3, [5], [6, 7, 8], id="accumulating"),
        pytest.param((), None, 1, [], [], id="never"),
    ],
)
def test_it_wakes_up_when_something_is_due(
    at: Any, every: int | None, accumulate: int, before: list[int], within: list[int]
) -> None:
    due = calls_due(at, every, accumulate, 10)
    assert [call for call, what in due.items() if what is Due.BEFORE] == before
    assert [call for call, what in due.items() if what is Due.WITHIN] == within


def test_a_schedule_that_is_over_never_wakes_up() -> None:
    schedule = Schedule(0, None, 1)
    assert schedule.await_step(0), "the step begins with the next call"
    schedule.close()
    assert schedule.is_closed
    assert [schedule.called() for _ in range(3)] == [None] * 3


def test_steps_are_counted_when_their_last_batch_is_over() -> None:
    schedule = Schedule((), None, 2)
    schedule.await_step(0)
    steps = []
    for _ in range(5):
        schedule.called()
        steps.append(schedule.steps)
    assert steps == [0, 1, 1, 2, 2]
    assert schedule.target == NEVER


@pytest.mark.parametrize(
    ("at", "accumulate", "last", "before", "within", "steps"),
    [
        pytest.param([1], 3, {3}, [2], [3], 3, id="it ends early itself"),
        pytest.param([1], 3, {0}, [0], [1, 2, 3], 3, id="the step before it ended early"),
        pytest.param([2], 3, {1, 4}, [4], [5, 6, 7], 3, id="both before it, one called two times"),
        pytest.param([0, 1], 3, {1, 2}, [], [0, 1, 2], 4, id="two in a row"),
        pytest.param([2], 3, {2, 5}, [5], [6, 7, 8], 3, id="last said of a whole window"),
        pytest.param([2], 1, {0, 1, 2}, [1], [2], 9, id="windows of one"),
    ],
)
def test_a_window_may_end_early(
    at: Any, accumulate: int, last: set[int], before: list[int], within: list[int], steps: int
) -> None:
    schedule, due = Schedule(at, None, accumulate), dict[int, Due]()
    schedule.await_step(0)
    calls_within = 0
    for number in range(9):
        found = schedule.called(number in last)
        if found is None:
            continue
        due[number] = found
        schedule.wake_next()
        calls_within = calls_within + 1 if found is Due.WITHIN else 0
        if calls_within == accumulate or (calls_within and number in last):
            calls_within = 0
            schedule.await_step(schedule.target + 1)
    assert [call for call, what in due.items() if what is Due.BEFORE] == before
    assert [call for call, what in due.items() if what is Due.WITHIN] == within
    assert schedule.steps == steps


@pytest.mark.parametrize(
    ("at", "accumulate", "last", "expected"),
    [
        pytest.param([0, 5], 1, set(), "WA..BWA.", id="far apart"),
        pytest.param([0, 2], 1, set(), "WBWA.", id="one between"),
        pytest.param([0, 1], 1, set(), "WWA.", id="two in a row"),
        pytest.param([0, 2], 2, set(), "WWABWWA.", id="windows"),
        pytest.param([0, 2], 2, {2}, "WWBWWA.", id="the next ends early"),
        pytest.param([0, 3], 2, {2}, "WWA.BWWA", id="one that ends early"),
    ],
)
def test_the_call_after_a_step_is_due_where_it_is_waited_for(
    at: Any, accumulate: int, last: set[int], expected: str
) -> None:
    schedule, due, within = Schedule(at, None, accumulate), "", 0
    schedule.await_step(0)
    for number in range(len(expected)):
        found = schedule.called(number in last)
        due += found.name[0] if found else "."
        if found in (Due.BEFORE, Due.WITHIN):
            schedule.wake_next()
        within += found is Due.WITHIN
        if within == accumulate:
            within = 0
            schedule.await_step(schedule.target + 1)
            schedule.wake_next()
    assert due == expected


@pytest.mark.parametrize(
    ("at", "every", "checked", "never"),
    [
        pytest.param([0, 500], None, [0], [500], id="one of two"),
        pytest.param([], 1000, [], [0], id="every, and no step at all"),
        pytest.param([], 1000, [0], [], id="every, and the first step came"),
        pytest.param(3, None, [3], [], id="all came"),
    ],
)
def test_steps_that_never_came_are_known(at: Any, every: Any, checked: list[int], never: list[int]) -> None:
    assert Schedule(at, every, 1).never_reached(checked) == never


@pytest.mark.parametrize(
    ("at", "every", "accumulate", "named"),
    [("0", None, 1, "at"), ([-1], None, 1, "at"), (0, 0, 1, "every"), (0, None, 0, "accumulate")],
    ids=["text", "negative", "every nothing", "accumulate nothing"],
)
def test_what_is_no_number_of_steps_is_refused(at: Any, every: Any, accumulate: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{named} must be"):
        Schedule(at, every, accumulate)
