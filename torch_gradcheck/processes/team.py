"""The ranks that share a check: the leader runs it, the others take their shares of what can be split."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch_gradcheck.errors import InvalidRequestError, ProcessGroupError, UnequalRanksError
from torch_gradcheck.processes.channel import LEADER, Channel
from torch_gradcheck.processes.failure import Failure
from torch_gradcheck.processes.messages import (
    Ended,
    Message,
    Order,
    Share,
    Task,
    answer_read,
    answer_written,
    read,
    written,
)
from torch_gradcheck.processes.signals import HeldSignals

T = TypeVar("T")

PULSE = 1.0
"""Seconds of its own work after which the leader asks the others whether all is well."""

SHORT = 3000
"""Bytes of all shares together that fit into the first packet of a message, with the task."""

PATIENCE = 3.0
"""Seconds that the first Ctrl-C may wait until the other ranks are told; then a second one ends this rank alone."""

NOT_THE_SAME_CHECK = (
    "the ranks do not run the same check: one has ended, or compares other things, where another one goes on. Call the "
    "same function with the same arguments on every rank."
)

INSIDE = (
    "a check with group was called inside of one that is running, as by its loss, forward or hook: the ranks do not "
    "run that code equally often, so that they would wait for each other without end. Leave group out of the inner "
    "check, or call it before the outer one."
)

_running = threading.local()
"""Has the attribute `team` while several ranks share a check that this thread runs."""


def _nothing() -> None:
    """Run for the signal that may have waited."""


class Team:
    """The ranks of a group; one rank alone where there is no group.

    All ranks run the same program. Where it comes to `lead`, the leader goes on alone, and everything that it finds is
    what all ranks return from there: no rank judges by numbers of its own. Meanwhile the others wait for shares.

    A signal that arrives while this rank talks to the others, or waits for them, is held until they can be told. That
    is looked up in the stack (see `HeldSignals`), so that nothing comes between two messages but what `_opened` runs.

    Args:
        channel: between the ranks; None for a rank alone.
    """

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel
        self._signals = HeldSignals(_PROTECTED, frozenset({Team._opened.__code__}), PATIENCE)
        self._state: Any = None
        self._is_in_task = self._has_ended = False
        self._failure: Failure | None = None
        self._last_asked = 0.0

    @property
    def size(self) -> int:
        """How many ranks share the work."""
        return 1 if self._channel is None else self._channel.size

    @property
    def rank(self) -> int:
        """This process among them."""
        return LEADER if self._channel is None else self._channel.rank

    @property
    def leads(self) -> bool:
        """Whether this is the rank that judges, and prints."""
        return self.rank == LEADER

    @property
    def can_share(self) -> bool:
        """Whether `shared` would ask other ranks now."""
        return self.size > 1 and self.leads and self._state is not None and not self._is_in_task

    def working_on(self, state: object) -> Team:
        """These ranks where `state` is what they work on at present, or a rank alone: the others have no such thing."""
        return self if self._state is state else Team()

    def together(self) -> Together:
        """A block in which an exception on one rank ends the check on all of them."""
        return Together(self)

    def lead(self, state: Any, work: Callable[[], T], prepare: Callable[[], object] = lambda: None) -> T:
        """The result of `work`, which the leader runs, on every rank; or the exception that it or a share ended in.

        Args:
            state: what tasks work on; every rank has one of its own.
            work: may call `shared`; its result must be one that can be pickled.
            prepare: run by the other ranks before the first share, to get ready while the leader does the same.
        """
        if self._channel is None or self._state is not None:  # alone, or in the midst of what this rank leads
            return work()
        self._begin(state)
        try:
            ended = self._led(work) if self.leads else self._followed(prepare)
        finally:
            self._state = None
        failure = self._failure or ended.failure
        if failure is not None:
            self._has_ended = ended.failure is not None  # else the others hear of it when they meet the next time
            raise failure.here
        result: T = ended.result
        return result

    def shared(self, task: Task, shares: Sequence[Any], meanwhile: Callable[[], object] = _nothing) -> list[Any]:
        """What `task` makes of every share, each on the rank of that number; only where `can_share`.

        Args:
            task: see `Task`.
            shares: one a rank.
            meanwhile: run by the leader before its own share, while the others are at theirs.

        Raises:
            Exception: that of the first rank that ended in one. Every later call raises it as well: the check is over.
        """
        if self._failure is None:
            self._tell_shares(task, shares)
            answers = self._gathered(self._attempted(lambda: self._run(task, shares[LEADER], meanwhile)))
            self._failure = _first_failure([*answers, self._attempted(_nothing)])
        if self._failure is not None:
            raise self._failure.here
        return answers

    def order(self, task: Task, share: Any) -> None:
        """Has the other ranks run a task while the leader goes on; their exceptions are raised by `shared`."""
        self._tell(Order(task, share))

    def pulse(self) -> None:
        """Asks the other ranks once a second whether all is well; called wherever the leader may work for long.

        So an exception or a signal on another rank ends the work here, and the timeout of the group starts anew.
        """
        if self.can_share and time.monotonic() - self._last_asked > PULSE:
            self.shared(_is_well, [None] * self.size)

    def exchanged(self, message: T) -> list[T]:
        """What every rank says, in their order, on every rank; outside of `lead` only. Raises what `meet` does.

        What ranks say at one place of the program is of one type.
        """
        return [message] if self._channel is None else self._exchanged(message)

    def meet(self) -> None:
        """Waits until all ranks are here; raises where one says that it cannot go on, or is at another place."""
        if self._is_connected:
            self._exchanged(None)

    def part(self, error: BaseException | None) -> None:
        """Meets the others a last time, and says what this rank ended in; raises what others did, without an own."""
        try:
            if self._is_connected:
                self._exchanged(_Parting(), None if error is None else Failure.of(error, self.rank))
        except BaseException:
            if error is None:
                raise

    @property
    def _is_connected(self) -> bool:
        """Whether the others may still listen."""
        return not (self._channel is None or self._has_ended or self._channel.is_lost or self._signals.lost_patience)

    def _exchanged(self, message: Any, failure: Failure | None = None) -> list[Any]:
        assert self._channel is not None
        own = failure or self._attempted(lambda: message)
        gathered = self._channel.gathered(answer_written(own, self.rank))
        everything = pickle.loads(self._channel.told(pickle.dumps(gathered)))
        found = [own if rank == self.rank else answer_read(data, self.rank) for rank, data in enumerate(everything)]
        failed = own if isinstance(own, Failure) else _first_failure(found)
        if failed is not None:
            self._has_ended = True
            raise failed.here
        if len({type(message) for message in found}) > 1:
            self._has_ended = True
            raise UnequalRanksError(NOT_THE_SAME_CHECK)
        return found

    def _begin(self, state: Any) -> None:
        self._is_in_task = self._has_ended = False
        self._failure = None
        self.meet()
        self._state, self._last_asked = state, time.monotonic()

    def _led(self, work: Callable[[], Any]) -> Ended:
        assert self._channel is not None
        result = self._attempted(work)
        failure = self._failure or (result if isinstance(result, Failure) else None)
        if self._channel.is_lost or self._signals.lost_patience:
            return Ended(failure=failure)
        ended = Ended(None if failure else result, failure)
        try:
            self._tell(ended)
        except ProcessGroupError as error:
            ended = Ended(failure=failure or Failure.of(error, self.rank))
        except Exception as error:  # of pickle
            ended = Ended(failure=Failure.of(error, self.rank))
            self._tell(ended)
        return ended

    def _followed(self, prepare: Callable[[], object]) -> Ended:
        assert self._channel is not None
        self._failure = _first_failure([self._attempted(prepare)])
        while not isinstance(message := self._heard(), Ended):
            answer = self._failure or self._answer(message)
            self._failure = _first_failure([answer])
            if isinstance(message, Share):
                self._channel.gathered(answer_written(answer, self.rank))
        return message

    def _heard(self) -> Message:
        """What the leader says, with this rank's share of it."""
        assert self._channel is not None
        message = read(self._channel.told(), self.rank)
        if not isinstance(message, Share) or not message.longest:
            return message
        own = self._channel.scattered(message.longest)
        return message._replace(parts=[own] * self.size)

    def _answer(self, message: Share | Order) -> Any:
        return self._attempted(lambda: self._run(message.task, message.on(self.rank)))

    def _tell_shares(self, task: Task, shares: Sequence[Any]) -> None:
        """Tells every rank its share: with the task where all are short, else each apart."""
        assert self._channel is not None
        parts = [b"" if rank == LEADER else pickle.dumps(share) for rank, share in enumerate(shares)]
        longest = max(map(len, parts))
        apart = longest if longest * self.size > SHORT else 0
        self._tell(Share(task, parts, apart))
        if apart:
            self._channel.scattered(apart, parts)

    def _tell(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.told(written(message))

    def _gathered(self, own: Any) -> list[Any]:
        """The answers of all ranks, on the leader, whose own is this one."""
        assert self._channel is not None
        gathered = self._channel.gathered(b"")
        self._last_asked = time.monotonic()
        return [own, *[answer_read(data, rank) for rank, data in enumerate(gathered) if rank != LEADER]]

    def _attempted(self, run: Callable[[], Any]) -> Any:
        """What it returns, or the failure that it ends in, or that of a signal which was held until now."""
        try:
            return self._opened(run)
        except BaseException as error:
            return Failure.of(error, self.rank)

    def _opened(self, run: Callable[[], Any]) -> Any:
        self._signals.deliver()
        return run()

    def _run(self, task: Task, share: Any, meanwhile: Callable[[], object] = _nothing) -> Any:
        self._is_in_task = True
        try:
            meanwhile()
            return task(self._state, share)
        finally:
            self._is_in_task = False


class Together:
    """See `Team.together`; not to be entered inside of `Team.lead`.

    A class and not a generator, which an interrupt could leave behind.
    """

    def __init__(self, team: Team) -> None:
        self._team = team

    def __enter__(self) -> Team:
        if self._team.size > 1:
            if hasattr(_running, "team"):
                raise InvalidRequestError(INSIDE)
            self._team._signals.install()
            _running.team = self._team  # only now, since nothing interrupts this any more
        return self._team

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._team.part(error)
        finally:
            vars(_running).pop("team", None)
            self._team._signals.release()


class _Parting:
    """What a rank says that has done all there was to do."""


_PROTECTED = frozenset(
    function.__code__
    for function in (
        *(Team.lead, Team.shared, Team.order, Team.exchanged, Team.meet, Team.part),
        *(Together.__enter__, Together.__exit__),
    )
)
"""Functions that are not to be interrupted: a rank that left the others between two messages would be waited for."""


def _first_failure(answers: Sequence[Any]) -> Failure | None:
    return next((each for each in answers if isinstance(each, Failure)), None)


def _is_well(state: object, share: object) -> None:
    """The task of a pulse: to be here."""
