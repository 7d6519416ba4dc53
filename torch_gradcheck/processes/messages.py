"""What the ranks say to each other: shares of the work, orders, and how it ended; as bytes, and read from them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch_gradcheck.errors import ProcessGroupError
from torch_gradcheck.processes.failure import Failure

Task = Callable[[Any, Any], Any]
"""A function of a module's top level: from what a rank works on, and its share, to its answer."""


class Share(NamedTuple):
    """A task, and every rank's share of it; each sends its answer to the leader."""

    task: Task
    shares: Sequence[Any]

    def on(self, rank: int) -> Any:
        """The share of a rank."""
        return self.shares[rank]


class Order(NamedTuple):
    """A task that every rank but the leader runs, all on the same; nobody waits for an answer."""

    task: Task
    share: Any

    def on(self, rank: int) -> Any:  # noqa: ARG002 - as of a share
        """What it is run on."""
        return self.share


class Ended(NamedTuple):
    """The outcome of what the leader ran."""

    result: Any = None
    failure: Failure | None = None


KINDS = (Share, Order, Ended)
"""The first byte of a message of the leader is the place of its kind in this list."""

Message = Share | Order | Ended


def written(message: Message) -> bytes:
    """A message of the leader as bytes; raises whatever `pickle` does."""
    return bytes([KINDS.index(type(message))]) + pickle.dumps(tuple(message))


def read(data: bytes, rank: int) -> Message:
    """The message; where this rank cannot read it, one of the same kind whose task, or end, is that failure."""
    kind = KINDS[data[0]]
    found = answer_read(data[1:], rank)
    if not isinstance(found, Failure):
        return kind(*found)
    if kind is Ended:
        return Ended(failure=found)
    unread = _Unreadable(found)
    return Order(unread, None) if kind is Order else Share(unread, [None] * (rank + 1))


def answer_written(answer: Any, rank: int) -> bytes:
    """An answer as bytes; where it cannot be pickled, the failure to do so."""
    try:
        return pickle.dumps(answer)
    except Exception as error:
        return pickle.dumps(Failure.of(error, rank))


def answer_read(data: bytes, rank: int) -> Any:
    """The answer; where it cannot be read, a failure of the rank that reads it."""
    try:
        return pickle.loads(data)
    except Exception as error:
        told = ProcessGroupError(f"what another rank said cannot be read here ({type(error).__name__}: {error})")
        return Failure.of(told, rank)


class _Unreadable:
    """Stands for a task that could not be read, and raises that."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    def __call__(self, state: Any, share: Any) -> Any:  # noqa: ARG002 - those of a task
        raise self._failure.here
