"""The number of threads that the operations of a chunk are spread over: as many as cores are free.

torch's own threads wait for each other after every operation, awake for a while, which takes microseconds. Threads of
Python, which take turns at its lock, would be put to sleep and woken again. But where other processes keep a core busy,
the threads of an operation wait for one that does not run, ten to forty times as long as they work.
"""

from __future__ import annotations

from time import perf_counter, process_time

import torch

BUSY_FRACTION = 0.75
"""Processor time divided by (wall time · threads) below which half as many threads are used.

A process that has its cores to itself reaches it, since a thread that waits for the next operation counts as busy: 1.5
seconds of processor time a second with 2 threads.
"""

INTERVAL = 0.02
"""Seconds between two comparisons of processor time with wall time; clocks of other threads are ticks behind."""

PAUSE = 16
"""Chunks on fewer threads before all are tried again; twice as many every further time."""


class OnThreads:
    """Operations of this thread are spread over `count` threads inside the block.

    A class and not a generator: an interrupt could leave a generator behind, which would put the number back only when
    it is collected.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._before)


class ThreadCount:
    """Chooses the number of threads, and changes it while a chunk is under way.

    Args:
        count: the largest number.

    Attributes:
        used: the number that operations are spread over now.
    """

    def __init__(self, count: int) -> None:
        self.used = self._all = count
        self._left, self._pause = 0, PAUSE
        self._seconds, self._processor_seconds = 0.0, 0.0  # of chunks before, since the last comparison
        self._started, self._processor_started = 0.0, 0.0

    def chunk(self) -> OnThreads:
        """The block in which operations of the next chunk are spread over `used` threads."""
        if self._left:
            self._left -= 1
        elif self.used < self._all:
            self.used, self._pause = self._all, 2 * self._pause
            self._seconds = self._processor_seconds = 0.0
        self._started, self._processor_started = perf_counter(), process_time()
        return OnThreads(self.used)

    def ended(self) -> None:
        """To be called after a chunk, so that time until the next one does not count."""
        self._seconds += perf_counter() - self._started
        self._processor_seconds += process_time() - self._processor_started

    def adapt(self) -> None:
        """To be called between two operations: halves the number if cores turn out to be busy with other processes."""
        if self.used == 1:
            return
        seconds = self._seconds + perf_counter() - self._started
        if seconds < INTERVAL:
            return
        processor_seconds = self._processor_seconds + process_time() - self._processor_started
        if processor_seconds < BUSY_FRACTION * self.used * seconds:
            self.used, self._left = self.used // 2, self._pause
            torch.set_num_threads(self.used)
        self._seconds = self._processor_seconds = 0.0
        self._started, self._processor_started = perf_counter(), process_time()
