"""Memory that torch has freed on the CPU, and the C library keeps for the next tensor: given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back_freed_memory() -> None:
    """Has glibc give the pages of freed blocks back to the system; nothing with another C library.

    Blocks of up to 32 MiB come from a heap that shrinks at its end only: a weight that was freed in the middle of it
    counts as memory of this process until something as small takes its place.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no such function, or no way to look for it
        return None
    return trim
