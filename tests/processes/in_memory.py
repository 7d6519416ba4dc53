"""Ranks that are threads of one process: the protocol of a team without processes, in microseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.processes.team import Team

LIMIT = 10.0
"""Seconds that a rank waits for the others before the test fails."""


class MemoryChannel:
    """What `Channel` offers, between threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self.is_lost = rank, barrier.parties, False
        self.collectives: list[str] = []
        self._barrier, self._board = barrier, board

    def told(self, message: bytes = b"") -> bytes:
        found = self._exchanged("told", message)[LEADER]
        assert isinstance(found, bytes)
        return found

    def gathered(self, message: bytes) -> list[bytes]:
        everything = self._exchanged("gathered", message)
        return everything if self.rank == LEADER else []

    def scattered(self, longest: int, parts: Sequence[bytes] = ()) -> bytes:
        found = self._exchanged("scattered", (longest, list(parts)))
        assert len({length for length, _ in found}) == 1, "ranks expect parts of different lengths"
        part = found[LEADER][1][self.rank]
        assert isinstance(part, bytes)
        assert len(part) <= longest
        return part

    def _exchanged(self, collective: str, message: Any) -> list[Any]:
        self.collectives.append(collective)
        self._board[self.rank] = (collective, message)
        self._barrier.wait(LIMIT)
        found = list(self._board)
        self._barrier.wait(LIMIT)
        assert len({name for name, _ in found}) == 1, f"ranks are in different collectives: {found}"
        return [message for _, message in found]


def run_ranks(size: int, program: Callable[[Team, int], Any]) -> list[Any]:
    """What a program returns, or the exception that it raises, on each of several ranks."""
    barrier, board = threading.Barrier(size), [None] * size
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        channel: Any = MemoryChannel(rank, barrier, board)
        try:
            outcomes[rank] = program(Team(channel), rank)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a rank hangs"
    return outcomes
