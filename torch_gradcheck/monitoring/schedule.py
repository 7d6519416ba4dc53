"""The schedule of a monitor: at which calls of `step` it notes something, and at which it checks."""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import Enum, auto
from typing import Any

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.request import count

NEVER = 2**62
"""A step, or a call, that no training comes to."""

CLOSED = -1
"""The wake-up call of a schedule that is over."""


class Due(Enum):
    """The purpose of a call of `step`."""

    BEFORE = auto()
    """The last call before a scheduled step begins: what the step may hold by mistake is remembered."""
    WITHIN = auto()
    """A batch of a scheduled step."""
    AFTER = auto()
    """The first call after a scheduled step, unless it is due for one of the others: the optimizer has stepped."""


class Schedule:
    """Counts calls of `step`, each of which ends the backward of a batch, and wakes up at those that matter.

    A training step accumulates over `accumulate` calls, or fewer where one of them is said to be its last. The step is
    scheduled at numbers counted from 0, and at every multiple of `every`.

    Args:
        at: the steps, one or several.
        every: every so many steps, 0 included; None for none.
        accumulate: calls that make up a step.

    Attributes:
        calls: how often `step` has been called; calls that were left out of a step that ended early count too.
        target: the next scheduled step, or the one under way; `NEVER` without one.

    Raises:
        InvalidRequestError: `at`, `every` or `accumulate` is no such number.
    """

    def __init__(self, at: Any, every: Any, accumulate: Any) -> None:
        self._accumulate = count("accumulate", accumulate, at_least=1)
        self._at = _steps(at)
        self._every = None if every is None else count("every", every, at_least=1)
        self.calls = 0
        self.target, self._wake = NEVER, NEVER

    @property
    def accumulate(self) -> int:
        """The calls that make up a step."""
        return self._accumulate

    @property
    def steps(self) -> int:
        """The training steps that are over."""
        return self.calls // self._accumulate

    @property
    def is_closed(self) -> bool:
        """Whether nothing is scheduled any more."""
        return self._wake == CLOSED

    def close(self) -> None:
        """Nothing is scheduled any more."""
        self._wake = CLOSED

    def await_step(self, first: int) -> bool:
        """Waits for the next scheduled step from `first` on; whether it begins with the next call."""
        later = [step for step in self._at if step >= first]
        if self._every is not None:
            later.append(-(-first // self._every) * self._every)
        self.target = min(later, default=NEVER)
        begins = self.target * self._accumulate
        self._wake = begins if begins <= self.calls else begins - 1
        return begins == self.calls

    def called(self, last: bool = False) -> Due | None:
        """Counts one call, the last of its step or one of several; None where nothing is due, as almost always."""
        call = self.calls
        self.calls = call + 1
        if last:
            return self._ended_early(call)
        if call != self._wake:
            return None
        return self._due(call)

    def _ended_early(self, call: int) -> Due | None:
        """Counts the calls that are left out of the step that this call ends."""
        self.calls = -(-self.calls // self._accumulate) * self._accumulate
        if not call <= self._wake < self.calls:
            return None
        return self._due(call)

    def _due(self, call: int) -> Due:
        """The purpose of a call that it has waited for."""
        begins = self.target * self._accumulate
        if self.calls < begins:
            self._wake = begins - 1
            return Due.AFTER
        return Due.BEFORE if call < begins else Due.WITHIN

    def never_reached(self, checked: Container[int]) -> list[int]:
        """The steps named in `at`, and step 0 of `every`, that are not among those that were checked."""
        named = self._at if self._every is None else self._at | {0}
        return sorted(step for step in named if step not in checked)

    def wake_next(self) -> None:
        """The next call matters, too."""
        self._wake = self.calls


def _steps(at: Any) -> frozenset[int]:
    """The steps that `at` names."""
    if isinstance(at, str) or not isinstance(at, int | Iterable):
        raise InvalidRequestError(f"at must be a step or several, counted from 0 (at=() for none), got {at!r}.")
    return frozenset(count("at", step, at_least=0) for step in ([at] if isinstance(at, int) else at))
