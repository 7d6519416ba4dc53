"""The number of perturbations to evaluate at a time: as many as reuse the same memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

SMALLEST, LARGEST = 16, 8192
"""The smallest and the largest number of perturbations in a chunk."""

WRITTEN = 2**21
"""Bytes (2 MiB) that an operation of the first chunk may write, supposing that every entry is perturbed."""

HELD = 2**24
"""Bytes (16 MiB) that the values of a later chunk may take at a time. With fewer, calls of operations take most of the
time; with more, results have left the cache when the next operation reads them, and the C library fetches memory anew.
"""


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
    """Sizes the first chunk by the most that a perturbation may take, and each later one by what the last one took.

    Args:
        limit: bytes that the values of one chunk may take.
        footprint: of one perturbation, supposing that every entry is perturbed.
    """

    def __init__(self, limit: int, footprint: Footprint) -> None:
        self._limit = limit
        first = WRITTEN * footprint.operations // max(footprint.written_bytes, 1)
        self._wanted = min(max(first, SMALLEST), LARGEST, self._fitting(footprint.peak_bytes))
        self._survivable = LARGEST  # less after running out of memory

    @property
    def size(self) -> int:
        """The size of the next chunk."""
        return min(self._wanted, self._survivable)

    def measured(self, size: int, peak_bytes: int) -> None:
        """Takes in what the values of a chunk took."""
        each = peak_bytes / size
        self._wanted = min(max(SMALLEST, int(HELD / max(each, 1))), self._fitting(each))

    def out_of_memory(self, size: int) -> None:
        """A chunk of this size was too large."""
        self._survivable = max(1, size // 2)

    def _fitting(self, each: float) -> int:
        """The number of perturbations that fit: temporaries beside the values of a chunk are at most as large again."""
        return max(1, min(LARGEST, int(self._limit / max(2 * each, 1))))
