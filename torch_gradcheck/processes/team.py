"""The ranks that share a check: the leader runs it, the others take their shares of what can be split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from torch_gradcheck.errors import ProcessGroupError
from torch_gradcheck.processes.channel import LEADER, Channel
from torch_gradcheck.processes.failure import Failure

T = TypeVar("T")

Task = Callable[[Any, Any], Any]
"""A function of a module's top level: from what a rank works on, and its share, to its answer."""


class _Share(NamedTuple):
    """A task, and every rank's share of it."""

    task: Task
    shares: Sequence[Any]


@dataclass(frozen=True)
class _Ended:
    """The outcome of what the leader ran."""

    result: Any = None
    failure: Failure | None = None


class Team:
    """The ranks of a group; of one rank alone where there is no group.

    All ranks run the same program. Where it comes to `lead`, the leader goes on alone, and everything that it finds is
    what all ranks return from there: no rank judges by numbers of its own. Meanwhile the others wait for shares.

    Args:
        channel: between the ranks; None for a rank alone.
    """

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel
        self._state: Any = None
        self._is_in_task = False
        self._has_ended = False

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
        return self.size > 1 and self._state is not None and not self._is_in_task

    def working_on(self, state: object) -> Team:
        """These ranks where `state` is what they work on at present, or a rank alone: the others have no such thing."""
        return self if self._state is state else Team()

    def together(self) -> _Together:
        """A block in which an exception on one rank ends the check on all of them."""
        return _Together(self)

    def lead(self, state: Any, work: Callable[[], T], prepare: Callable[[], object] = lambda: None) -> T:
        """The result of `work`, which the leader runs, on every rank; or the exception that it or a share ended in.

        Args:
            state: what tasks work on; every rank has one of its own.
            work: may call `shared`; its result must be one that can be pickled.
            prepare: run by the other ranks before the first share, to get ready while the leader does the same.
        """
        if self._channel is None or self._state is not None:  # alone, or in the midst of what this rank leads
            return work()
        self.meet()
        self._state = state
        try:
            ended = self._led(work) if self.leads else self._followed(prepare)
        finally:
            self._state = None
        self._has_ended = ended.failure is not None
        if ended.failure is not None:
            raise ended.failure.error_on(self.rank)
        result: T = ended.result
        return result

    def shared(self, task: Task, shares: Sequence[Any], meanwhile: Callable[[], object] = lambda: None) -> list[Any]:
        """What `task` makes of every share, each on the rank of that number; only where `can_share`.

        Args:
            task: see `Task`.
            shares: one a rank.
            meanwhile: run by the leader before its own share, while the others are at theirs.
        """
        assert self._channel is not None
        assert len(shares) == self.size
        self._channel.told(_Share(task, shares))
        answers = self._channel.gathered(self._answer(task, shares[LEADER], meanwhile))
        self._raise_kept()
        for answer in answers:
            if isinstance(answer, Failure):
                raise answer.error_on(LEADER)
        return answers

    def exchanged(self, message: T) -> list[T]:
        """What every rank says, in their order, on every rank; outside of `lead` only."""
        return [message] if self._channel is None else self._channel.exchanged(message)

    def meet(self, failure: Failure | None = None) -> None:
        """Waits until all ranks are here; raises where one says that it cannot go on."""
        if self._channel is None or self._has_ended:
            return
        failures = [each for each in self._channel.exchanged(failure) if each is not None]
        if failures:
            self._has_ended = True
            raise failures[0].error_on(self.rank)
        self._raise_kept()

    def _led(self, work: Callable[[], Any]) -> _Ended:
        assert self._channel is not None
        try:
            ended = _Ended(work())
        except ProcessGroupError:
            self._has_ended = True  # nobody is there to be told
            raise
        except BaseException as error:
            ended = _Ended(failure=Failure.of(error, self.rank))
        self._channel.told(ended)
        return ended

    def _followed(self, prepare: Callable[[], object]) -> _Ended:
        assert self._channel is not None
        unready = self._attempted(prepare)
        while not isinstance(message := self._channel.told(), _Ended):
            answer = unready if isinstance(unready, Failure) else self._answer(message.task, message.shares[self.rank])
            self._channel.gathered(answer)
        return message

    def _answer(self, task: Task, share: Any, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """What a task makes of a share; the failure it ends in, or one that has been kept while this rank waited."""
        return self._attempted(lambda: self._run(task, share, meanwhile))

    def _attempted(self, run: Callable[[], Any]) -> Any:
        try:
            self._raise_kept()
            return run()
        except BaseException as error:
            return Failure.of(error, self.rank)

    def _run(self, task: Task, share: Any, meanwhile: Callable[[], object]) -> Any:
        self._is_in_task = True
        try:
            meanwhile()
            return task(self._state, share)
        finally:
            self._is_in_task = False

    def _raise_kept(self) -> None:
        assert self._channel is not None
        kept, self._channel.kept = self._channel.kept, None
        if kept is not None:
            raise kept


class _Together:
    """See `Team.together`. A class and not a generator, which an interrupt could leave behind."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def __enter__(self) -> Team:
        return self._team

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._team.meet()
        elif not isinstance(error, ProcessGroupError):
            self._team.meet(Failure.of(error, self._team.rank))


def team_of(group: dist.ProcessGroup) -> Team:
    """The ranks of a process group, of which this process is one; alone where there is no other rank."""
    return Team() if dist.get_world_size(group) == 1 else Team(Channel(group))
