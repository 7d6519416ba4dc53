"""How many cores the operations of a chunk are spread over: as many as there are and have something to do.

torch's own threads wait for each other after every operation, awake for a while: that takes microseconds, where threads
of Python that take turns at its lock are put to sleep and woken again. But where other processes keep a core busy, the
threads of an operation wait for one that does not run, ten to forty times as long as they work.
"""

from __future__ import annotations

from time import perf_counter, process_time

import torch

BUSY = 0.75
"""The part of the processor time of all cores in use that a process which has them to itself takes at least: threads
that wait for the next operation count as busy. With less, half as many are used."""

WINDOW = 0.02
"""Seconds after which processor time is looked at: clocks of other threads are ticks behind."""

PAUSE = 16
"""Chunks on fewer cores before all are tried again; twice as many every further time."""


class OnThreads:
    """Operations of this thread are spread over so many cores inside the block.

    No generator: one that an interrupt leaves behind would put the number back when it is collected, whenever that is.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._before)


class ThreadCount:
    """Chooses how many, and changes that while a chunk is under way.

    Args:
        count: how many there are.

    Attributes:
        used: how many operations are spread over.
    """

    def __init__(self, count: int) -> None:
        self.used = self._all = count
        self._left, self._pause = 0, PAUSE
        self._seconds, self._processor_seconds = 0.0, 0.0  # of chunks before, since the last look
        self._started, self._processor_started = 0.0, 0.0

    def chunk(self) -> OnThreads:
        """The block in which operations of the next chunk are spread over the cores in use."""
        if self._left:
            self._left -= 1
        elif self.used < self._all:
            self.used, self._pause = self._all, 2 * self._pause
            self._seconds = self._processor_seconds = 0.0
        self._started, self._processor_started = perf_counter(), process_time()
        return OnThreads(self.used)

    def ended(self) -> None:
        """To be called after a chunk: what happens until the next one does not count."""
        self._seconds += perf_counter() - self._started
        self._processor_seconds += process_time() - self._processor_started

    def look(self) -> None:
        """To be called between two operations of a chunk: from time to time sees to it whether all cores are had."""
        if self.used == 1:
            return
        seconds = self._seconds + perf_counter() - self._started
        if seconds < WINDOW:
            return
        processor_seconds = self._processor_seconds + process_time() - self._processor_started
        if processor_seconds < BUSY * self.used * seconds:
            self.used, self._left = self.used // 2, self._pause
            torch.set_num_threads(self.used)
        self._seconds = self._processor_seconds = 0.0
        self._started, self._processor_started = perf_counter(), process_time()
