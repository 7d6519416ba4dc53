"""How many perturbations to evaluate at a time: the number with the best measured throughput that memory allows."""

from __future__ import annotations

from typing import NamedTuple

import torch

SMALLEST, LARGEST = 16, 8192
"""Perturbations that are worth a chunk of their own, and those that are enough."""

CACHED = 2**21
"""Bytes that an operation of a chunk may write before its results leave the cache until the next one reads them."""

REUSED = 2**24
"""Bytes that a chunk may hold at a time without the C library giving memory of a thread back and fetching it anew."""


def keep_freed_memory() -> None:
    """Have the C library reuse the memory of one operation for the next.

    By default glibc gives blocks above 128 KiB back to the system at once, and fetching fresh pages then takes several
    times longer than computing their content. It raises that limit to the size of the largest such block it has seen
    freed, 32 MiB at most; this one is never written to, so it takes no memory.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error)


class Footprint(NamedTuple):
    """What one perturbation takes.

    Attributes:
        held: the most bytes at any time.
        written: bytes by all operations together.
        operations: how many.
    """

    held: int
    written: int
    operations: int


class ChunkSize:
    """Climbs by factors of two from what fits into the cache, while that makes a perturbation cheaper.

    Args:
        limit: bytes that the values of one chunk may take.
        footprint: of one perturbation; as long as nothing is measured, what it may hold bounds the chunk.
    """

    def __init__(self, limit: int, footprint: Footprint) -> None:
        self._limit = limit
        cached = CACHED * footprint.operations // max(footprint.written, 1)
        self._first = min(max(cached, SMALLEST), LARGEST)
        self._affordable = self._fitting(footprint.held)
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
        """Take in what a chunk cost."""
        each = seconds / size
        self._seconds[size] = min(each, self._seconds.get(size, each))
        self._affordable = min(self._fitting(peak_bytes / size), self._reusing(peak_bytes / size))

    def out_of_memory(self, size: int) -> None:
        """A chunk of this size was too large."""
        self._survivable = max(1, size // 2)
        self._seconds = {known: seconds for known, seconds in self._seconds.items() if known <= self._survivable}

    def _fitting(self, each: float) -> int:
        """How many perturbations fit: temporaries beside the values of a chunk are at most as large again."""
        return max(1, min(LARGEST, int(self._limit / max(2 * each, 1))))

    def _reusing(self, each: float) -> int:
        """How many perturbations reuse memory, but no fewer than are worth a chunk."""
        return max(SMALLEST, int(REUSED / max(each, 1)))
