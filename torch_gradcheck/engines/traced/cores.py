"""How many cores the operations of a chunk are spread over: all there are, unless fewer are measured to be faster.

torch's own threads wait for each other after every operation, awake for a while: that takes microseconds, where threads
of Python that take turns at its lock are put to sleep and woken again. But where other processes keep a core busy, the
threads of an operation wait for one that does not run, ten to forty times as long as they work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUSPICIOUS = 0.75
"""The part of the processor time that the cores could give, or gave when they were faster than half as many; with
less, half as many are tried."""

WINDOW = 0.02
"""Seconds after which processor time is looked at: clocks of other threads are ticks behind."""

PAUSE = 16
"""Chunks on fewer cores, where these were faster, before all are tried again; twice as many every further time."""


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
    """Chooses for chunk after chunk: all of them, or half as many as before where these are faster.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._all = self._used = count
        self._left, self._pause = 0, PAUSE
        self._usual = 1.0  # of the processor time that the cores used could give
        self._seconds, self._processor_seconds = 0.0, 0.0  # since the last look
        self._suspect: tuple[int, float] | None = None

    def next(self, parameter: int) -> int:
        """How many cores the next chunk of a parameter is to be spread over."""
        is_trial = self._suspect is not None and self._suspect[0] == parameter
        return self._used // 2 if is_trial else self._used

    def measured(self, parameter: int, size: int, cores: int, seconds: float, processor_seconds: float) -> None:
        """Take in what a chunk cost.

        Args:
            parameter: which one.
            size: how many perturbations.
            cores: how many its operations were spread over.
            seconds: by the clock.
            processor_seconds: of all threads of this process.
        """
        if cores < self._used:
            self._compare(seconds / size)
            return
        self._suspect = None
        self._seconds += seconds
        self._processor_seconds += processor_seconds
        if self._used > 1 and self._seconds >= WINDOW:
            if self._busy < SUSPICIOUS * self._usual:
                self._suspect = parameter, seconds / size
            else:
                self._look_anew()
        if self._left:
            self._left -= 1
            if not self._left:
                self._used, self._pause, self._suspect = self._all, 2 * self._pause, None
                self._look_anew()

    @property
    def _busy(self) -> float:
        return self._processor_seconds / self._seconds / self._used

    def _compare(self, each_on_half: float) -> None:
        """Go on with half as many, for a while, where these took less time than all that were used."""
        _, each = self._suspect or (0, each_on_half)
        self._suspect = None
        if each > each_on_half:
            self._used, self._left, self._usual = self._used // 2, self._pause, 1.0
        else:
            self._usual = self._busy
        self._look_anew()

    def _look_anew(self) -> None:
        self._seconds = self._processor_seconds = 0.0
