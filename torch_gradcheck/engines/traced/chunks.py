"""The number of perturbations to evaluate at a time: the one with the highest measured throughput within memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

SMALLEST, LARGEST = 16, 8192
"""The smallest and the largest number of perturbations in a chunk."""

CACHED = 2**21
"""Bytes (2 MiB) that an operation of the first chunk may write, so that the next operation finds them in the cache."""

REUSED = 2**24
"""Bytes (16 MiB) of a chunk's values up to which the C library reuses a thread's memory instead of returning it."""


def keep_freed_memory() -> None:
    """Have the C library reuse the memory of one operation for the next.

    By default glibc gives blocks above 128 KiB back to the system at once, and fetching fresh pages then takes several
    times longer than computing their content. glibc raises that limit to the size of the largest such block that was
    freed, 32 MiB at most. The block freed here is never written to, so it takes no memory.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


class Footprint(NamedTuple):
    """The memory and the work of one perturbation.

    Attributes:
        peak_bytes: the largest number of bytes at a time.
        written_bytes: bytes that all operations write together.
        operations: the number of operations.
    """

    peak_bytes: int
    written_bytes: int
    operations: int


class ChunkSize:
    """Starts at what fits into the cache and doubles as long as that makes a perturbation cheaper.

    Args:
        limit: bytes that the values of one chunk may take.
        footprint: of one perturbation; its peak bounds the chunk until one is measured.
    """

    def __init__(self, limit: int, footprint: Footprint) -> None:
        self._limit = limit
        cached = CACHED * footprint.operations // max(footprint.written_bytes, 1)
        self._first = min(max(cached, SMALLEST), LARGEST)
        self._affordable = self._fitting(footprint.peak_bytes)
        self._survivable = LARGEST  # less after running out of memory
        self._seconds: dict[int, float] = {}  # per perturbation, the best seen at each size

    @property
    def size(self) -> int:
        """The size to use next."""
        largest = min(self._affordable, self._survivable)
        if not self._seconds:
            return min(self._first, largest)
        best = min(self._seconds, key=self._seconds.__getitem__)
        if best == max(self._seconds):
            return min(2 * best, largest)
        if best == min(self._seconds):
            return min(max(best // 2, SMALLEST), largest)
        return min(best, largest)

    def measured(self, size: int, seconds: float, peak_bytes: int) -> None:
        """Take in the seconds and the peak of a chunk of this size."""
        each = seconds / size
        self._seconds[size] = min(each, self._seconds.get(size, each))
        self._affordable = min(self._fitting(peak_bytes / size), self._reusing(peak_bytes / size))

    def out_of_memory(self, size: int) -> None:
        """Take in that a chunk of this size was too large."""
        self._survivable = max(1, size // 2)
        self._seconds = {known: seconds for known, seconds in self._seconds.items() if known <= self._survivable}

    def _fitting(self, each: float) -> int:
        """The number of perturbations within the limit: temporaries take at most as much again as values."""
        return max(1, min(LARGEST, int(self._limit / max(2 * each, 1))))

    def _reusing(self, each: float) -> int:
        """The number of perturbations that reuse memory, but at least `SMALLEST`."""
        return max(SMALLEST, int(REUSED / max(each, 1)))
