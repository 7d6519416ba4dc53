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
    """A task, and every rank's share of it; each sends its answer to the leader.

    Attributes:
        task: what is run.
        parts: the share of every rank as bytes; none where each rank is sent its own apart.
        longest: the bytes of the longest of them where they are sent apart; else 0.
    """

    task: Task
    parts: Sequence[bytes]
    longest: int = 0

    def on(self, rank: int) -> Any:
        """The share of a rank; raises whatever `pickle` does."""
        return pickle.loads(self.parts[rank])


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

LENGTH = 8
"""Bytes that hold the length of what follows a message."""

Message = Share | Order | Ended


def written(message: Message) -> bytes:
    """A message of the leader as bytes; raises whatever `pickle` does."""
    body: tuple[Any, ...] = tuple(message)
    if isinstance(message, Share):
        body = message.task, () if message.longest else tuple(message.parts)
    longest = message.longest if isinstance(message, Share) else 0
    return bytes([KINDS.index(type(message))]) + longest.to_bytes(LENGTH, "little") + pickle.dumps(body)


def read(data: bytes, rank: int) -> Message:
    """The message; where this rank cannot read it, one of the same kind whose task, or end, is that failure."""
    kind, longest = KINDS[data[0]], int.from_bytes(data[1 : 1 + LENGTH], "little")
    body = answer_read(data[1 + LENGTH :], rank)
    if isinstance(body, Failure):
        body = (None, body) if kind is Ended else (_Unreadable(body), [pickle.dumps(None)] * (rank + 1))
    return Share(body[0], body[1], longest) if kind is Share else kind(*body)


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
