"""How many cores the operations of a chunk are spread over: as many as there are, unless one is measured to be faster.

torch's own threads wait for each other after every operation, awake for a while: that takes microseconds, where threads
of Python that take turns at its lock are put to sleep and woken again. But where other processes keep a core busy, the
threads of an operation wait for one that does not run, ten to forty times as long as they work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUSPICIOUS = 0.75
"""The part of the processor time that cores could give, or gave when all were found to be faster, which is worth a
comparison."""

WINDOW = 0.02
"""Seconds after which processor time is looked at: clocks of other threads are ticks behind."""

PAUSE = 16
"""Chunks on one core, where it was faster, before all are tried again; twice as many every further time."""


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Operations of this thread are spread over so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cores:
    """Chooses for chunk after chunk.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._left_on_one, self._pause = 0, PAUSE
        self._usual = float(count)  # processor time in wall time
        self._seconds, self._processor_seconds = 0.0, 0.0  # since the last look
        self._suspect: tuple[int, float] | None = None

    def next(self, parameter: int) -> int:
        """How many cores the next chunk of a parameter is to be spread over."""
        if self._left_on_one:
            return 1
        return 1 if self._suspect is not None and self._suspect[0] == parameter else self._count

    def measured(self, parameter: int, size: int, cores: int, seconds: float, processor_seconds: float) -> None:
        """Take in what a chunk cost.

        Args:
            parameter: which one.
            size: how many perturbations.
            cores: how many its operations were spread over.
            seconds: by the clock.
            processor_seconds: of all threads of this process.
        """
        if cores > 1:
            self._seconds += seconds
            self._processor_seconds += processor_seconds
            self._suspect = None
            if self._seconds >= WINDOW and self._busy < SUSPICIOUS * self._usual:
                self._suspect = parameter, seconds / size
            elif self._seconds >= WINDOW:
                self._seconds = self._processor_seconds = 0.0
        elif self._left_on_one:
            self._left_on_one -= 1
        elif self._suspect is not None:
            self._compare(self._suspect[1], seconds / size)

    @property
    def _busy(self) -> float:
        return self._processor_seconds / self._seconds

    def _compare(self, each_on_all: float, each_on_one: float) -> None:
        self._suspect = None
        if each_on_all > each_on_one:
            self._left_on_one, self._pause = self._pause, 2 * self._pause
        else:
            self._usual = self._busy
        self._seconds = self._processor_seconds = 0.0
